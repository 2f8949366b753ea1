// The page's state, and what is drawn of it.

const $ = (id) => document.getElementById(id);
const TITLES = { before: "Before (unsteered)", after: "After (steered)", difference: "Difference" };
const RASTER = 512, THUMB = 104, LARGE = 900, TOP = 10; // pixels; rows of a table
const view = { which: "all", layer: null, head: null, picture: 0, frame: null, position: null, row: null };
let look = null, images = [];
let whole = null, maps = null; // all that came, and those of the row that is shown
const memo = new Map(); // of the maps that are shown

function element(tag, attributes = {}, ...children) {
  const made = Object.assign(document.createElement(tag), attributes);
  made.append(...children);
  return made;
}

const cached = (key, make) => memo.get(key) ?? memo.set(key, make()).get(key);
const weightsOf = (which, layer, head) =>
  cached(`w ${which} ${layer} ${head}`, () => chosen(maps, which, layer, head));
const sharesOf = (which, head) => cached(`s ${which} ${head}`, () => shares(maps, which, head));
const sum = (values) => values.reduce((a, b) => a + b, 0);
const whichShown = () => (!maps.after ? ["before"] : view.which === "all" ? ["before", "after", "difference"] : [view.which]);
const galleryShows = () => (!maps.after ? "before" : view.which === "all" ? "after" : view.which);
const isHidden = (p) => $("sinks").checked && maps.sinks.has(p);

// found: what `Look.as_dict` in page.py has.
async function show(found) {
  const read = found.maps ? asMaps(await readNpz(found.maps)) : null;
  const decoded = await Promise.all(found.pictures.map((one) => Promise.all(one.frames.map(loaded))));
  [look, whole, images] = [found, read, decoded];
  if (view.row !== null && view.row >= (whole?.tokens ?? 0)) view.row = null;
  maps = rowOf(whole, view.row);
  memo.clear();
  showFacts(look.facts || {});
  showAnswers();
  for (const part of document.querySelectorAll("#map-section, #heads-section, #shares, [aria-labelledby=shares-title], [aria-labelledby=positions-title]"))
    part.hidden = !maps;
  $("map-section").hidden = false;
  $("controls").hidden = !maps;
  const why = maps ? maps.unknown && `The maps cannot be laid over the picture: ${maps.unknown}.` : look.missing;
  $("unknown").textContent = (why || "").replace(/\.\.$/, ".");
  $("unknown").hidden = !why;
  if (maps) setControls();
  $("result").hidden = false;
  draw();
}

async function loaded(uri) {
  const image = new Image();
  image.src = uri;
  try {
    await image.decode();
    return image;
  } catch {
    return null; // of a format that this browser does not know
  }
}

function showFacts(facts) {
  const rows = Object.entries(facts).map(([name, value]) =>
    element("div", {}, element("dt", { textContent: name }), element("dd", { textContent: value })),
  );
  $("facts").replaceChildren(...rows);
}

function showAnswers() {
  const { base, steered } = look;
  $("asked").textContent = look.question;
  const cards = [answerCard("Base answer, unsteered", base, "")];
  if (steered) {
    const card = answerCard("Steered answer", steered, "steered");
    const same = base.text === steered.text;
    card.append(element("p", { className: "note", textContent: same ? "The same words as unsteered." : "Other words than unsteered." }));
    cards.push(card);
  }
  $("answers").replaceChildren(...cards);
}

function answerCard(title, { text, confidence, report }, kind) {
  const facts = element("dl");
  const add = (name, value) =>
    facts.append(element("div", {}, element("dt", { textContent: name }), element("dd", { textContent: value })));
  if (confidence !== null) add("confidence of the first token", percent(confidence));
  if (report) {
    add("alpha", report.steered ? report.alpha : kind ? "none" : "1, unsteered");
    if (kind) add("mode", report.mode);
  }
  const card = element("div", { className: `answer ${kind}` }, element("h3", { textContent: title }),
    element("blockquote", { textContent: text || "(no words)" }), facts);
  if (kind && report && !report.steered) card.append(element("p", { textContent: `Not steered: ${report.reason}.` }));
  if (kind && report && report.mode === "adaptive" && report.confidence !== null)
    card.append(element("p", { textContent: `The unsteered confidence of ${percent(report.confidence)} chose this alpha.` }));
  return card;
}

function sizeOf(picture) {
  const [width, height] = maps ? maps.sizes.subarray(2 * picture, 2 * picture + 2) : [];
  if (width) return { width, height };
  const image = images[picture]?.[0], known = look.pictures[picture];
  return { width: known?.width || image?.naturalWidth || 1, height: known?.height || image?.naturalHeight || 1 };
}

// The controls of what there is; a choice stays where it still is one.
function setControls() {
  if (view.layer !== null && view.layer >= maps.L) view.layer = null;
  if (view.head !== null && view.head >= maps.H) view.head = null;
  if (view.picture >= look.pictures.length) view.picture = 0;
  view.position = null;
  $("layer").max = maps.L - 1;
  $("layer").value = view.layer ?? 0;
  $("which").hidden = !maps.after;
  $("row-field").hidden = !whole.tokens;
  const tokens = Array.from({ length: whole.tokens }, (_, k) => element("option", { value: k, textContent: `generated token ${k + 1}` }));
  $("row").replaceChildren(element("option", { value: "", textContent: "last prompt token" }), ...tokens);
  $("row").value = view.row ?? "";
  $("picture-field").hidden = look.pictures.length < 2;
  $("picture").replaceChildren(
    ...look.pictures.map((one, i) => element("option", { value: i, textContent: one.name || `picture ${i + 1}` })),
  );
  $("picture").value = view.picture;
  setFrames();
  $("sinks-field").hidden = !maps.sinks.size;
  $("sinks-count").textContent = maps.sinks.size === 1 ? "the sink" : `the ${maps.sinks.size} sinks`;
  const heads = Array.from({ length: maps.H }, (_, head) => {
    const button = element("button", { type: "button" }, element("canvas"), element("span"));
    button.onclick = () => change({ head: view.head === head ? null : head });
    return button;
  });
  $("heads").replaceChildren(...heads);
  $("heads").buttons = heads;
}

// The first frames of a video that have positions of their own.
function frames() {
  const own = onPicture(maps, view.picture, null).map((p) => maps.frame[p]).filter((frame) => frame >= 0);
  return [...new Set(own)].sort((a, b) => a - b);
}

function setFrames() {
  const list = frames();
  $("frame-field").hidden = list.length < 2;
  $("frame").max = Math.max(0, list.length - 1);
  if (!list.includes(view.frame)) view.frame = null;
  $("frame").value = Math.max(0, list.indexOf(view.frame));
}

function change(what) {
  Object.assign(view, what);
  if ("row" in what) {
    maps = rowOf(whole, view.row);
    memo.clear();
    setControls();
  }
  if ("picture" in what) setFrames();
  if (Object.keys(what).join() === "position") drawPictures(); // the rest is as it was
  else draw();
}

function draw() {
  if (!maps) return drawBare();
  const layer = view.layer === null ? "mean of all" : maps.layers[view.layer];
  $("layer-name").value = layer;
  $("layer").setAttribute("aria-valuetext", view.layer === null ? "mean of all layers" : `layer ${layer}`);
  $("layer-mean").ariaPressed = view.layer === null;
  $("head-name").value = view.head === null ? "mean of all" : `head ${view.head}`;
  $("head-mean").ariaPressed = view.head === null;
  $("frame-name").value = view.frame === null ? "all" : view.frame;
  $("frame-all").ariaPressed = view.frame === null;
  if (maps.unknown) drawBare();
  else drawPictures();
  drawHeads();
  drawShares();
  drawPositions();
}

// The pictures alone.
function drawBare() {
  const figures = look.pictures.map((one, i) => {
    const canvas = element("canvas", { role: "img", ariaLabel: "the picture" });
    const size = sizeOf(i);
    paint(canvas, images[i][0], size, { width: 1, height: 1, values: [0] }, { top: 1, strength: 0, side: LARGE });
    return element("figure", {}, canvas);
  });
  $("pictures").figures = null;
  $("pictures").className = "one";
  $("pictures").replaceChildren(...figures);
}

// Rasters of what is shown, and where each one's colours end: before and after have one scale.
function rasters(list, layer, head, side) {
  const size = sizeOf(view.picture);
  const positions = onPicture(maps, view.picture, view.frame).filter((p) => !isHidden(p));
  const of = (which) => {
    const weights = weightsOf(which, layer, head), drawn = raster(maps, weights, positions, size, side);
    const best = positions.reduce((top, p) => Math.max(top, Math.abs(weights[p])), 0);
    return { which, drawn, top: most(drawn), best };
  };
  const found = list.map(of);
  const plain = found.filter((one) => one.which !== "difference");
  if (maps.after && plain.length === 1) plain.push(of(plain[0].which === "after" ? "before" : "after"));
  const top = Math.max(...plain.map((one) => one.top)), best = Math.max(...plain.map((one) => one.best));
  for (const one of plain) Object.assign(one, { top, best });
  return found;
}

function drawPictures() {
  const box = $("pictures"), list = whichShown(), size = sizeOf(view.picture);
  if (box.figures?.map((one) => one.which).join() !== list.join()) {
    box.figures = list.map(pictureFigure);
    box.replaceChildren(...box.figures.map((one) => one.figure));
    box.className = list.length === 1 ? "one" : "";
  }
  const image = images[view.picture][Math.max(0, view.frame ?? 0)] ?? images[view.picture][0];
  const visible = onPicture(maps, view.picture, view.frame);
  rasters(list, view.layer, view.head, RASTER).forEach(({ which, drawn, top, best }, i) => {
    const { canvas, ends, title } = box.figures[i];
    const isSigned = which === "difference";
    const strength = $("strength").value / 100, isGrey = $("grey").checked;
    paint(canvas, image, size, drawn, { top, isSigned, strength, isGrey, side: LARGE });
    for (const p of visible)
      if (maps.sinks.has(p)) outline(canvas, size, [...maps.boxes.subarray(4 * p, 4 * p + 4)], true);
    if (view.position !== null && visible.includes(view.position))
      outline(canvas, size, [...maps.boxes.subarray(4 * view.position, 4 * view.position + 4)], false);
    const share = sum(weightsOf(which, view.layer, view.head));
    const name = view.row === null ? TITLES[which] : `Generated token ${view.row + 1}`;
    title.textContent = `${name}: ${isSigned ? signed(share) : percent(share)} on the image`;
    canvas.ariaLabel = `${title.textContent}. Arrow keys go from position to position.`;
    ends[0].textContent = isSigned ? signed(-best, 2) : "0";
    ends[1].textContent = isSigned ? signed(best, 2) : percent(best, 2);
  });
  readOut();
}

function pictureFigure(which) {
  const canvas = element("canvas", { tabIndex: 0 });
  canvas.setAttribute("role", "img");
  const title = element("h3"), ends = [element("span"), element("span")];
  const bar = element("i", { className: which === "difference" ? "signed" : "" });
  const scale = element("figcaption", { className: "scale", title: "of a head's attention, at one position" }, ends[0], bar, ends[1]);
  canvas.onpointermove = (event) => point(canvas, event);
  canvas.onpointerdown = (event) => point(canvas, event);
  canvas.onkeydown = (event) => {
    const step = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
    if (!step) return;
    event.preventDefault();
    const visible = onPicture(maps, view.picture, view.frame), at = visible.indexOf(view.position);
    change({ position: visible[at < 0 ? 0 : (at + step + visible.length) % visible.length] });
  };
  return { which, canvas, title, ends, figure: element("figure", {}, title, canvas, scale) };
}

// The smallest box below the pointer.
function point(canvas, event) {
  const box = canvas.getBoundingClientRect(), size = sizeOf(view.picture);
  const x = ((event.clientX - box.left) / box.width) * size.width, y = ((event.clientY - box.top) / box.height) * size.height;
  const area = (p) => (maps.boxes[4 * p + 2] - maps.boxes[4 * p]) * (maps.boxes[4 * p + 3] - maps.boxes[4 * p + 1]);
  const below = onPicture(maps, view.picture, view.frame).filter((p) => {
    const [x0, y0, x1, y1] = maps.boxes.subarray(4 * p, 4 * p + 4);
    return x0 <= x && x < x1 && y0 <= y && y < y1;
  });
  const position = below.sort((a, b) => area(a) - area(b))[0] ?? null;
  if (position !== view.position) change({ position });
}

function boxText(p) {
  if (!hasArea(maps, p)) return "no area";
  const [x0, y0, x1, y1] = [...maps.boxes.subarray(4 * p, 4 * p + 4)].map((edge) => Math.round(edge));
  return `x ${x0} to ${x1}, y ${y0} to ${y1}`;
}

function readOut() {
  const p = view.position;
  if (p === null) {
    $("readout").textContent = "Point at the picture, or press arrow keys on it, to read single positions.";
    return;
  }
  const before = weightsOf("before", view.layer, view.head)[p];
  let text = `Position ${maps.positions[p]} of the prompt, ${boxText(p)}: before ${percent(before, 2)}`;
  if (maps.after) {
    const after = weightsOf("after", view.layer, view.head)[p];
    text += `, after ${percent(after, 2)} (${signed(after - before, 2)})`;
  }
  $("readout").textContent = text + (maps.sinks.has(p) ? ". It is a sink." : ".");
}
