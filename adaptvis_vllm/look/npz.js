// The arrays of a file that numpy's `savez_compressed` wrote: a zip of .npy files.

// The number of each bit pattern of a float16.
const HALVES = Float32Array.from({ length: 65536 }, (_, bits) => {
  const sign = bits >> 15 ? -1 : 1, exponent = (bits >> 10) & 31, fraction = bits & 1023;
  if (exponent === 31) return fraction ? NaN : sign * Infinity;
  if (exponent === 0) return sign * fraction * 2 ** -24;
  return sign * (1 + fraction / 1024) * 2 ** (exponent - 15);
});

async function readNpz(base64) {
  const bytes = Uint8Array.from(atob(base64), (letter) => letter.charCodeAt(0));
  const view = new DataView(bytes.buffer);
  const u16 = (at) => view.getUint16(at, true), u32 = (at) => view.getUint32(at, true);
  let end = bytes.length - 22;
  while (end >= 0 && u32(end) !== 0x06054b50) end--;
  if (end < 0) throw new Error("The maps are no npz file.");
  const arrays = {};
  let at = u32(end + 16);
  for (let left = u16(end + 10); left > 0; left--) {
    const length = u16(at + 28), local = u32(at + 42);
    const name = new TextDecoder().decode(bytes.subarray(at + 46, at + 46 + length));
    const start = local + 30 + u16(local + 26) + u16(local + 28);
    const packed = bytes.subarray(start, start + u32(at + 20));
    arrays[name.replace(/\.npy$/, "")] = readNpy(u16(at + 10) ? await inflated(packed) : packed);
    at += 46 + length + u16(at + 30) + u16(at + 32);
  }
  return arrays;
}

async function inflated(bytes) {
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate-raw"));
  return new Uint8Array(await new Response(stream).arrayBuffer());
}

// {shape, data}: data is a typed array, or text.
function readNpy(bytes) {
  const view = new DataView(bytes.buffer, bytes.byteOffset);
  const [length, start] = bytes[6] === 1 ? [view.getUint16(8, true), 10] : [view.getUint32(8, true), 12];
  const head = new TextDecoder("latin1").decode(bytes.subarray(start, start + length));
  const kind = /'descr': '([^']+)'/.exec(head)[1];
  const shape = /'shape': \(([^)]*)\)/.exec(head)[1].split(",").filter((n) => n.trim()).map(Number);
  const body = bytes.slice(start + length).buffer;
  if (kind === "<f2") return { shape, data: new Uint16Array(body) };
  if (kind === "<f4") return { shape, data: new Float32Array(body) };
  if (kind === "<i4") return { shape, data: new Int32Array(body) };
  if (kind.startsWith("<U")) {
    return { shape, data: String.fromCodePoint(...new Uint32Array(body)).replace(/\0+$/, "") };
  }
  throw new Error(`The maps have an array of the kind ${kind}.`);
}
