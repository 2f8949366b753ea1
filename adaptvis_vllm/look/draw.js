// Maps on canvases, and curves.

const HEAT = [[0, 0, 127], [255, 48, 0], [255, 255, 128]];
const SIGNED = [[32, 64, 255], [255, 255, 255], [255, 32, 32]];

// Three colours and a place between 0 and 1.
function colour(stops, place) {
  const [from, to] = place < 0.5 ? [stops[0], stops[1]] : [stops[1], stops[2]];
  const part = (place < 0.5 ? place : place - 0.5) * 2;
  return from.map((value, i) => value + (to[i] - value) * part);
}

// Positions of a picture (of one frame of a video, or null for all) that have an area.
function onPicture(maps, picture, frame) {
  const out = [];
  for (let p = 0; p < maps.P; p++)
    if (maps.image[p] === picture && hasArea(maps, p) && (frame === null || maps.frame[p] === frame))
      out.push(p);
  return out;
}

// Weight a pixel, each position's spread evenly over its box; where boxes overlap they add up.
// size: of the picture. side: pixels of the raster's longer side.
function raster(maps, weights, positions, size, side) {
  const scale = side / Math.max(size.width, size.height);
  const width = Math.max(1, Math.round(size.width * scale));
  const height = Math.max(1, Math.round(size.height * scale));
  const values = new Float32Array(width * height);
  for (const p of positions) {
    const [x0, y0, x1, y1] = maps.boxes.subarray(4 * p, 4 * p + 4);
    const left = Math.round((x0 * width) / size.width), top = Math.round((y0 * height) / size.height);
    const right = Math.min(width, Math.max(left + 1, Math.round((x1 * width) / size.width)));
    const bottom = Math.min(height, Math.max(top + 1, Math.round((y1 * height) / size.height)));
    // By the box's own area: rounding to pixels must not show.
    const each = weights[p] / Math.max(1, (x1 - x0) * (y1 - y0) * scale ** 2);
    for (let y = top; y < bottom; y++) for (let x = left; x < right; x++) values[y * width + x] += each;
  }
  return { width, height, values };
}

const most = (raster) => raster.values.reduce((best, value) => Math.max(best, Math.abs(value)), 0);

// The picture, in grey or as it is, and a raster over it whose colours end at `top`. strength:
// opacity of the most.
function paint(canvas, image, size, raster, { top, isSigned, strength, isGrey, side }) {
  const scale = side / Math.max(size.width, size.height);
  canvas.width = Math.round(size.width * scale);
  canvas.height = Math.round(size.height * scale);
  const context = canvas.getContext("2d");
  if (image) context.drawImage(image, 0, 0, canvas.width, canvas.height);
  if (isGrey) {
    context.globalCompositeOperation = "saturation";
    context.fillStyle = "#808080";
    context.fillRect(0, 0, canvas.width, canvas.height);
    context.globalCompositeOperation = "source-over";
  }
  const pixels = new ImageData(raster.width, raster.height);
  raster.values.forEach((value, i) => {
    const level = top ? Math.min(1, Math.abs(value) / top) : 0;
    const place = isSigned ? 0.5 + (Math.sign(value) * level) / 2 : level;
    pixels.data.set(colour(isSigned ? SIGNED : HEAT, place), 4 * i);
    pixels.data[4 * i + 3] = 255 * strength * Math.sqrt(level);
  });
  const small = new OffscreenCanvas(raster.width, raster.height);
  small.getContext("2d").putImageData(pixels, 0, 0);
  context.drawImage(small, 0, 0, canvas.width, canvas.height);
}

// The rectangle of a position on a painted canvas.
function outline(canvas, size, box, dashed) {
  const context = canvas.getContext("2d"), scale = canvas.width / size.width;
  const [x0, y0, x1, y1] = box.map((edge) => edge * scale);
  context.lineWidth = 2;
  for (const [ink, dash] of [["#000", []], ["#fff", dashed ? [5, 5] : []]]) {
    context.strokeStyle = ink;
    context.setLineDash(dash);
    const inset = !dashed && ink === "#000" ? -2 : 0;
    context.strokeRect(x0 + inset, y0 + inset, x1 - x0 - 2 * inset, y1 - y0 - 2 * inset);
  }
}

const CURVE = { width: 320, height: 190, left: 42, right: 10, top: 12, bottom: 30 };

// The next of 0.01, 0.02, 0.05, 0.1, ...
function roundUp(value) {
  const power = 10 ** Math.floor(Math.log10(Math.max(value, 1e-3)));
  return [1, 2, 5, 10].map((step) => step * power).find((step) => step >= value * 1.0001) ?? 10 * power;
}

// Curves over layers, as SVG. lines: [{values, kind}]. chosen: index in layers, or null.
function curves(title, layers, lines, chosen) {
  const { width, height, left, right, top, bottom } = CURVE;
  const peak = roundUp(Math.max(...lines.flatMap((line) => line.values)));
  const last = Math.max(1, layers.length - 1);
  const x = (i) => left + (layers.length > 1 ? i / last : 0.5) * (width - left - right);
  const y = (value) => height - bottom - (value / peak) * (height - top - bottom);
  const ticks = [0, 0.5, 1].map((part) => {
    const value = part * peak;
    return `<line class="grid" x1="${left}" x2="${width - right}" y1="${y(value)}" y2="${y(value)}"/>
      <text x="${left - 5}" y="${y(value) + 4}" text-anchor="end">${percent(value, peak < 0.1 ? 2 : 0)}</text>`;
  });
  const shown = [...new Set([0, Math.round(last / 2), layers.length - 1])];
  const names = shown.map(
    (i) => `<text x="${x(i)}" y="${height - 12}" text-anchor="middle">${layers[i]}</text>`,
  );
  const drawn = lines.map(({ values, kind }) => {
    const points = values.map((value, i) => `${x(i).toFixed(1)},${y(value).toFixed(1)}`);
    const dots = points.map((point) => `<circle class="${kind}" cx="${point.split(",")[0]}" cy="${point.split(",")[1]}" r="${values.length > 48 ? 1.5 : 2.5}"/>`);
    return `<polyline class="${kind}" points="${points.join(" ")}"/>${dots.join("")}`;
  });
  const mark = chosen === null ? "" : `<line class="chosen" x1="${x(chosen)}" x2="${x(chosen)}" y1="${top}" y2="${height - bottom}"/>`;
  return `<svg viewBox="0 0 ${width} ${height}" role="img" aria-label="${title}">${ticks.join("")}${mark}${drawn.join("")}
    ${names.join("")}<text x="${(left + width - right) / 2}" y="${height - 1}" text-anchor="middle">layer</text></svg>`;
}
