// What is read out of the maps. See `adaptvis_vllm.maps.Maps` for the names and shapes.

const SINK = 10; // times the median of the image's positions

// L layers, H heads, P positions; `before` and `after` are float16 bits, see HALVES.
function asMaps(arrays) {
  const data = (name) => (arrays[name] ? arrays[name].data : null);
  const [layers, heads, positions] = arrays.before.shape;
  const maps = {
    L: layers, H: heads, P: positions,
    layers: data("layers"), positions: data("positions"), image: data("image"),
    frame: data("frame"), boxes: data("boxes"), sizes: data("sizes"),
    before: data("before"), after: data("after"),
    rest: { before: data("rest_before"), after: data("rest_after") },
    tokens: arrays.tokens ? arrays.tokens.shape[0] : 0,
    tokenWeights: data("tokens"), tokenRest: data("rest_tokens"),
    unknown: data("unknown") || "",
  };
  maps.sinks = sinksOf(maps);
  return maps;
}

// The maps of a generated token's row, which has no other pass; of null the last prompt row's.
function rowOf(maps, row) {
  if (!maps || row === null) return maps;
  const part = (values, size) => values.subarray(row * size, (row + 1) * size), heads = maps.L * maps.H;
  const rest = { before: part(maps.tokenRest, 2 * heads), after: null };
  return { ...maps, before: part(maps.tokenWeights, heads * maps.P), after: null, rest };
}

const hasArea = (maps, p) => !Number.isNaN(maps.boxes[4 * p]);

// [P]: of one layer and head (indices), or null for the mean of all.
function chosen(maps, which, layer, head) {
  if (which === "difference") {
    const before = chosen(maps, "before", layer, head);
    return chosen(maps, "after", layer, head).map((weight, p) => weight - before[p]);
  }
  const { L, H, P } = maps, bits = maps[which] || maps.before;
  const out = new Float32Array(P);
  const [l0, l1] = layer === null ? [0, L] : [layer, layer + 1];
  const [h0, h1] = head === null ? [0, H] : [head, head + 1];
  for (let l = l0; l < l1; l++)
    for (let h = h0; h < h1; h++)
      for (let p = 0, at = (l * H + h) * P; p < P; p++) out[p] += HALVES[bits[at + p]];
  const count = (l1 - l0) * (h1 - h0);
  return out.map((sum) => sum / count);
}

// Of one head, or of the mean of all: the parts of the attention that lie on the image, on the
// prompt's first token and on other text, [L] each.
function shares(maps, which, head) {
  const { L, H } = maps, rest = maps.rest[which];
  const image = [], first = [], text = [];
  for (let l = 0; l < L; l++) {
    image.push(chosen(maps, which, l, head).reduce((a, b) => a + b, 0));
    const heads = head === null ? [...Array(H).keys()] : [head];
    const mean = (side) =>
      heads.reduce((sum, h) => sum + HALVES[rest[2 * (l * H + h) + side]], 0) / heads.length;
    first.push(mean(0));
    text.push(mean(1));
  }
  return { image, first, text };
}

// Positions that get over SINK times the median of the image's positions in more than half of all
// heads of all layers, before and, where there is one, after. Heads whose median is 0 in float16
// do not count.
function sinksOf(maps) {
  const { L, H, P } = maps;
  const passes = [maps.before, maps.after].filter(Boolean);
  const votes = passes.map((bits) => {
    const above = new Uint32Array(P);
    let heads = 0;
    for (let row = 0; row < L * H; row++) {
      // Of positive float16 numbers the bits have the same order.
      const weights = bits.subarray(row * P, (row + 1) * P);
      const median = HALVES[weights.slice().sort()[P >> 1]];
      if (!median) continue;
      heads++;
      for (let p = 0; p < P; p++) if (HALVES[weights[p]] > SINK * median) above[p]++;
    }
    return { above, heads };
  });
  const found = new Set();
  for (let p = 0; p < P; p++)
    if (votes.every(({ above, heads }) => above[p] > heads / 2)) found.add(p);
  return found;
}

const percent = (share, digits = 1) => `${(100 * share).toFixed(digits)}%`;
const signed = (share, digits = 1) => (share > 0 ? "+" : "") + percent(share, digits);
