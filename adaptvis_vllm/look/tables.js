// The gallery of heads, the curves over layers, and tables.

function drawHeads() {
  const which = galleryShows(), size = sizeOf(view.picture), buttons = $("heads").buttons;
  const place = view.layer === null ? "mean of all layers" : `layer ${maps.layers[view.layer]}`;
  const names = { before: "before", after: "after", difference: "difference" };
  $("heads-title").textContent = `Heads, ${place}, ${names[which]}`;
  const shareOf = (kind, head) => sum(weightsOf(kind, view.layer, head));
  const image = images[view.picture][Math.max(0, view.frame ?? 0)] ?? images[view.picture][0];
  const drawn = buttons.map((_, head) => rasters([which], view.layer, head, THUMB)[0]);
  const top = Math.max(...drawn.map((one) => one.top));
  const keys = buttons.map((button, head) => {
    const { drawn: pixels, top: own } = drawn[head];
    const canvas = button.firstChild, share = shareOf(which, head);
    canvas.hidden = Boolean(maps.unknown);
    if (!maps.unknown)
      paint(canvas, image, size, pixels, {
        top: $("same").checked ? top : own, isSigned: which === "difference", strength: 0.9,
        isGrey: $("grey").checked, side: THUMB,
      });
    button.ariaPressed = view.head === head;
    button.lastChild.textContent = `head ${head}: ${which === "difference" ? signed(share) : percent(share)}`;
    const moved = maps.after ? Math.abs(shareOf("difference", head)) : 0;
    return { number: -head, share: shareOf(maps.after ? "after" : "before", head), change: moved };
  });
  const order = $("order").value;
  const sorted = buttons.map((_, head) => head).sort((a, b) => keys[b][order] - keys[a][order] || a - b);
  const wanted = sorted.map((head) => buttons[head]);
  if (wanted.some((button, i) => $("heads").children[i] !== button)) $("heads").append(...wanted);
}

const SIDES = { image: "On the image", first: "On the prompt's first token", text: "On other text" };

function drawShares() {
  const passes = maps.after ? ["before", "after"] : ["before"];
  const found = Object.fromEntries(passes.map((which) => [which, sharesOf(which, view.head)]));
  const whose = view.head === null ? "Mean of all heads" : `Head ${view.head}`;
  $("shares-note").replaceChildren(`${whose}. `, element("b", { className: "before", textContent: "- - before" }));
  if (maps.after) $("shares-note").append(" ", element("b", { className: "after", textContent: "— after" }));
  $("shares-note").append(". A click on a curve chooses the layer.");
  const figures = Object.entries(SIDES).map(([side, title]) => {
    const lines = passes.map((which) => ({ kind: which, values: found[which][side] }));
    const figure = element("figure", {}, element("h3", { textContent: title }));
    figure.insertAdjacentHTML("beforeend", curves(`${title}, by layer`, maps.layers, lines, view.layer));
    figure.lastChild.onclick = (event) => change({ layer: layerAt(event) });
    return figure;
  });
  $("shares").replaceChildren(...figures);
  const heads = Object.values(SIDES).flatMap((title) => passes.map((which) => `${title}, ${which}`));
  const rows = [...maps.layers].map((layer, l) => [
    layer,
    ...Object.keys(SIDES).flatMap((side) => passes.map((which) => percent(found[which][side][l]))),
  ]);
  fill($("shares-table"), ["Layer", ...heads], rows);
}

function layerAt(event) {
  const svg = event.currentTarget.getBoundingClientRect();
  const place = (((event.clientX - svg.left) / svg.width) * CURVE.width - CURVE.left) / (CURVE.width - CURVE.left - CURVE.right);
  return Math.min(maps.L - 1, Math.max(0, Math.round(place * (maps.L - 1))));
}

function drawPositions() {
  const before = weightsOf("before", view.layer, view.head);
  const after = maps.after && weightsOf("after", view.layer, view.head);
  const all = [...before.keys()], key = after || before;
  const share = (list) => percent(sum(list.map((p) => key[p])));
  const names = (list) => list.slice(0, 40).map((p) => maps.positions[p]).join(", ") + (list.length > 40 ? ", ..." : "");
  const sinks = all.filter((p) => maps.sinks.has(p)), bare = all.filter((p) => !hasArea(maps, p));
  const rule = `over ${SINK} times the median of the image's positions in more than half of all heads of the captured layers` + (whole.after ? ", before and after" : "");
  $("sinks-said").textContent = sinks.length
    ? `Sinks: ${names(sinks)}. Together they have ${share(sinks)}. A sink gets ${rule}.`
    : `There is no sink: no position gets ${rule}.`;
  $("areas-said").textContent = maps.unknown
    ? ""
    : bare.length
      ? `Without an area on a picture (newlines, padding, class tokens): ${names(bare)}. Together they have ${share(bare)}.`
      : "Every position has an area on a picture.";
  const best = all.sort((a, b) => key[b] - key[a]).slice(0, TOP);
  const several = look.pictures.length > 1;
  const rows = best.map((p) => {
    const button = element("button", { type: "button", textContent: maps.positions[p] });
    button.onclick = () => change({ picture: maps.image[p], position: p });
    const where = (several ? `${look.pictures[maps.image[p]]?.name || `picture ${maps.image[p] + 1}`}, ` : "") + (maps.frame[p] >= 0 ? `frame ${maps.frame[p]}, ` : "") + boxText(p);
    const numbers = after ? [percent(before[p], 2), percent(after[p], 2), signed(after[p] - before[p], 2)] : [percent(before[p], 2)];
    return [maps.unknown ? maps.positions[p] : button, where, ...numbers, maps.sinks.has(p) ? "sink" : ""];
  });
  fill($("positions-table"), ["Position", "Where", ...(after ? ["before", "after", "difference"] : ["before"]), ""], rows);
}

function fill(table, heads, rows) {
  const cells = (tag, values) =>
    element("tr", {}, ...values.map((value) => element(tag, {}, typeof value === "object" ? value : String(value))));
  table.replaceChildren(element("thead", {}, cells("th", heads)), element("tbody", {}, ...rows.map((row) => cells("td", row))));
}
