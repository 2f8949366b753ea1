// What the controls do; the page that has something to show shows it, the other one asks.

for (const radio of document.getElementsByName("which")) radio.onchange = () => change({ which: radio.value });
$("layer").oninput = () => change({ layer: Number($("layer").value) });
$("layer-mean").onclick = () => change({ layer: view.layer === null ? Number($("layer").value) : null });
$("head-mean").onclick = () => change({ head: null });
$("strength").oninput = () => change({});
$("row").onchange = () => change({ row: $("row").value === "" ? null : Number($("row").value) });
$("picture").onchange = () => change({ picture: Number($("picture").value), position: null });
$("frame").oninput = () => change({ frame: frames()[Number($("frame").value)], position: null });
$("frame-all").onclick = () => change({ frame: view.frame === null ? frames()[Number($("frame").value)] : null });
for (const id of ["sinks", "grey", "order", "same"]) $(id).onchange = () => change({});

const given = JSON.parse($("data").textContent);
if (given) {
  show(given).catch((error) => say(error.message));
} else {
  startAsking();
}
