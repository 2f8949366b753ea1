// The live page: a picture and a question go to the server that the page came from.

const WAIT_MS = 300; // after the last move of a control
const ALPHAS = ["alpha", "alpha_low", "alpha_high", "threshold"];
let files = []; // [{name, uri}]
let known = null; // what GET /adaptvis says
let base = { asked: null, answer: null }; // the unsteered answer is asked for once
let running = null, timer = null;

function say(text, isBad = true) {
  $("said").textContent = text;
  $("said").className = isBad ? "bad" : "note";
}

function startAsking() {
  $("ask").hidden = false;
  $("ask").onsubmit = (event) => {
    event.preventDefault();
    ask();
  };
  $("files").onchange = () => take($("files").files);
  const drop = $("drop");
  drop.ondragover = (event) => {
    event.preventDefault();
    drop.classList.add("over");
  };
  drop.ondragleave = () => drop.classList.remove("over");
  drop.ondrop = (event) => {
    event.preventDefault();
    drop.classList.remove("over");
    take(event.dataTransfer.files);
  };
  document.onpaste = (event) => event.clipboardData.files.length && take(event.clipboardData.files);
  $("mode").onchange = () => {
    showMode();
    askSoon();
  };
  $("alpha-slider").oninput = () => {
    $("alpha").value = Number((2 ** $("alpha-slider").value).toPrecision(3));
    askSoon();
  };
  $("alpha").oninput = () => {
    if ($("alpha").value > 0) $("alpha-slider").value = Math.log2($("alpha").value);
    askSoon();
  };
  for (const id of ["alpha_low", "alpha_high", "threshold", "layers", "maps"]) $(id).onchange = askSoon;
  $("key").onchange = learn;
  learn();
}

// What the server is, and how it steers requests that do not say.
async function learn() {
  try {
    known = await request("adaptvis");
  } catch (error) {
    return say(error.message);
  }
  say("");
  showFacts({ model: known.model });
  if (!known.steerable) return say(NO_IMAGES);
  const defaults = known.defaults;
  if (["scaling", "adaptive"].includes(defaults?.mode)) {
    $("mode").options[0].hidden = false;
    $("mode").value = "default";
    for (const name of ALPHAS) if (defaults[name] !== null) $(name).value = defaults[name];
    if (defaults.alpha) $("alpha-slider").value = Math.log2(defaults.alpha);
  }
  showMode();
}

const NO_IMAGES = "The server's model takes no images: there is nothing to look at.";

function showMode() {
  for (const group of document.querySelectorAll("[data-mode]")) group.hidden = group.dataset.mode !== $("mode").value;
}

async function take(list) {
  const uriOf = (file) =>
    new Promise((done, fail) => {
      const reader = new FileReader();
      reader.onload = () => done({ name: file.name, uri: reader.result });
      reader.onerror = () => fail(new Error(`${file.name} cannot be read.`));
      reader.readAsDataURL(file);
    });
  try {
    files = await Promise.all([...list].map(uriOf));
  } catch (error) {
    return say(error.message);
  }
  base = { asked: null, answer: null };
  $("dropped").textContent = files.map((file) => file.name).join(", ");
  $("thumbs").replaceChildren(...files.map((file) => element("img", { src: file.uri, alt: file.name })));
  askSoon();
}

// Only what was asked once is asked again by itself.
function askSoon() {
  clearTimeout(timer);
  if (look && files.length && $("question").value.trim()) timer = setTimeout(ask, WAIT_MS);
}

function steering() {
  const mode = $("mode").value;
  const names = { scaling: ["alpha"], adaptive: ["alpha_low", "alpha_high", "threshold"], default: [] }[mode];
  const given = Object.fromEntries(names.map((name) => [`adaptvis_${name}`, $(name).valueAsNumber]));
  for (const [name, value] of Object.entries(given))
    if (Number.isNaN(value)) throw new Error(`${name.replace("adaptvis_", "")} must be a number.`);
  if (mode !== "default") given.adaptvis_mode = mode;
  if ($("layers").value.trim() !== "all") given.adaptvis_layers = $("layers").value.trim();
  return { ...given, adaptvis_maps: $("maps").value.trim() || "all" };
}

async function ask() {
  clearTimeout(timer);
  running?.abort();
  const mine = (running = new AbortController());
  const question = $("question").value.trim();
  if (!known) await learn();
  if (!known) return; // and it is said why
  try {
    if (!known.steerable) throw new Error(NO_IMAGES);
    if (!files.length) throw new Error("Choose a picture first.");
    if (!question) throw new Error("Ask a question first.");
    const steered = steering();
    say("Asking ...", false);
    $("send").disabled = true;
    const asked = JSON.stringify([question, $("max_tokens").value]);
    if (base.asked !== asked) {
      const answer = await complete(question, { adaptvis_mode: "off" }, mine.signal);
      base = { asked, answer };
    }
    const answer = await complete(question, steered, mine.signal);
    await show({
      question,
      pictures: files.map(({ name, uri }) => ({ name, frames: [uri] })),
      base: base.answer,
      steered: answer,
      maps: answer.maps,
      missing: missing(answer),
      facts: { model: known.model },
    });
    say("");
  } catch (error) {
    if (error.name !== "AbortError") say(error.message);
  } finally {
    if (running === mine) $("send").disabled = false;
  }
}

function missing({ maps, report }) {
  if (maps) return "";
  return `The answer came without maps${report?.reason ? ": " + report.reason : ""}.`;
}

// {text, confidence, report, maps} of one chat completion.
async function complete(question, xargs, signal) {
  const parts = files.map(({ uri }) => ({ type: "image_url", image_url: { url: uri } }));
  const body = {
    messages: [{ role: "user", content: [...parts, { type: "text", text: question }] }],
    max_tokens: $("max_tokens").valueAsNumber || 32,
    temperature: 0,
    logprobs: true,
    top_logprobs: 1,
    vllm_xargs: xargs,
  };
  const answer = await request("v1/chat/completions", body, signal);
  const [choice] = answer.choices;
  const first = choice.logprobs?.content?.[0]?.top_logprobs?.[0]?.logprob;
  return {
    text: choice.message.content || "",
    confidence: first === undefined ? null : Math.exp(first),
    report: answer.adaptvis ?? null,
    maps: answer.adaptvis_maps ?? null,
  };
}

// The JSON that the server answers with. An Error has a sentence for the reader.
async function request(path, body, signal) {
  const key = $("key").value.trim();
  const refused = new Error("The server does not take this API key.");
  if (/[^!-~]/.test(key)) throw refused; // no header may hold it
  const headers = body ? { "content-type": "application/json" } : {};
  if (key) headers.authorization = `Bearer ${key}`;
  let answer, text;
  try {
    // From /adaptvis/look, wherever a proxy has put that.
    answer = await fetch(`../${path}`, { method: body ? "POST" : "GET", headers, signal, body: body && JSON.stringify(body) });
    text = await answer.text();
  } catch (error) {
    throw error.name === "AbortError" ? error : new Error("The server cannot be reached.");
  }
  if (answer.status === 401) {
    $("key-field").hidden = false;
    throw key ? refused : new Error("The server asks for an API key: write it into the field above.");
  }
  let data = null;
  try {
    data = JSON.parse(text);
  } catch {
    // no JSON: from a proxy, or nothing
  }
  if (answer.ok && data) return data;
  const why = data?.error?.message ?? data?.detail ?? data?.message;
  throw new Error(typeof why === "string" ? `The server says: ${why}` : `The server answers with HTTP ${answer.status}.`);
}
