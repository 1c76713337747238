// Labels photos that are dropped on the page. Nothing leaves it: the model runs here.
import * as ort from "./ort.wasm.min.mjs";
import { boxInPhoto, square } from "./squares.mjs";

const COLOURS = ["#ffb000", "#56b4e9", "#3ddc97", "#ff8fc7", "#f0e442", "#ff7a45", "#b9a5ff"];
const place = (id) => document.getElementById(id);
ort.env.wasm.numThreads = 1; // more need headers that a plain server does not send

const description = await (await fetch("../model.json")).json();
const how = description.preprocessing;
place("title").textContent = `${description.class_names.length} labels of photos`;
place("names").textContent = description.class_names.join(", ");
const session = await ort.InferenceSession.create("../" + description.formats.onnx);

// Red, green and blue of a photo, upright, as its file has them.
async function decoded(blob) {
  const bitmap = await createImageBitmap(blob, { colorSpaceConversion: "none" });
  const canvas = new OffscreenCanvas(bitmap.width, bitmap.height);
  const context = canvas.getContext("2d");
  context.drawImage(bitmap, 0, 0);
  const { data } = context.getImageData(0, 0, bitmap.width, bitmap.height);
  const pixels = new Uint8ClampedArray(data.length / 4 * 3);
  for (let k = 0; k < data.length / 4; k++) {
    for (let colour = 0; colour < 3; colour++) pixels[3 * k + colour] = data[4 * k + colour];
  }
  return { width: bitmap.width, height: bitmap.height, pixels };
}

// What the model says of a photo: its outputs by name, without the axis of the batch.
async function outputsOf(photo) {
  const rows = description.input.shape[0] === "batch" ? 1 : description.input.shape[0];
  const size = how.size, seen = square(photo, how);
  const pixels = new Uint8Array(rows * seen.length);
  for (let row = 0; row < rows; row++) pixels.set(seen, row * seen.length);
  const input = new ort.Tensor("uint8", pixels, [rows, size, size, 3]);
  const found = await session.run({ [description.input.name]: input });
  return Object.fromEntries(Object.entries(found).map(([name, tensor]) =>
    [name, Array.from(tensor.data.subarray(0, tensor.data.length / rows), Number)]));
}

function regionsOf(outputs, photo) {
  return (outputs.box_classes ?? []).map((c, k) => ({
    label: c,
    looked: outputs.looked_at?.[k] ?? 1,
    box: boxInPhoto(outputs.boxes.slice(4 * k, 4 * k + 4), photo.width, photo.height, how),
  })).filter((region) => region.looked);
}

function element(name, attributes = {}, ...children) {
  const made = Object.assign(document.createElement(name), attributes);
  made.append(...children);
  return made;
}

// A card with the photo, its regions and its labels.
function card(name, blob, photo, outputs) {
  const ranked = outputs.probabilities.map((_, c) => c)
    .sort((a, b) => outputs.probabilities[b] - outputs.probabilities[a]);
  const present = ranked.filter((c) => outputs.present[c]);
  const colours = new Map(present.map((c, k) => [c, COLOURS[k % COLOURS.length]]));
  const boxes = regionsOf(outputs, photo).filter(({ label }) => colours.has(label)).map(
    ({ label, box: [y1, x1, y2, x2] }) => {
      const drawn = element("i", { title: description.class_names[label] });
      drawn.style.cssText = `left:${100 * x1 / photo.width}%;top:${100 * y1 / photo.height}%;` +
        `width:${100 * (x2 - x1) / photo.width}%;height:${100 * (y2 - y1) / photo.height}%;` +
        `border-color:${colours.get(label)}`;
      return drawn;
    });
  const shown = present.length ? present : ranked.slice(0, 3);
  const rows = shown.map((c) => element("li", { className: colours.has(c) ? "present" : "below" },
    element("span", { textContent: description.class_names[c] }),
    element("b", { textContent: outputs.probabilities[c].toFixed(2) })));
  rows.forEach((row, k) => { row.style.borderColor = colours.get(shown[k]) ?? "transparent"; });
  const image = element("img", { src: URL.createObjectURL(blob), alt: name });
  return element("figure", {}, element("div", { className: "photo" }, image, ...boxes),
    element("figcaption", { textContent: name }), element("ul", {}, ...rows));
}

async function label(files) {
  for (const file of files) {
    try {
      const photo = await decoded(file);
      place("answers").prepend(card(file.name, file, photo, await outputsOf(photo)));
    } catch (error) {
      const said = `${file.name} cannot be read: ${error.message}`;
      place("answers").prepend(element("p", { role: "alert", className: "error", textContent: said }));
    }
  }
}

// The reference photos, beside what is written of them.
async function prove() {
  const expected = await (await fetch("../references/references.json")).json();
  let error = 0, same = 0;
  const names = description.references;
  for (const [row, name] of names.entries()) {
    const photo = await decoded(await (await fetch("../" + name)).blob());
    const outputs = await outputsOf(photo);
    outputs.probabilities.forEach((probability, c) => {
      error = Math.max(error, Math.abs(probability - expected.probabilities[row][c]));
    });
    same += expected.present[row].every((is, c) => Boolean(outputs.present[c]) === is);
  }
  place("proof").textContent = `Here the ${names.length} reference photos have the same labels on ` +
    `${same}, and probabilities within ${error.toExponential(1)} of Python's.`;
  Object.assign(document.body.dataset, { error, same });
}

window.decoded = decoded; // to be looked at
window.square = (photo) => square(photo, how);
addEventListener("dragover", (event) => event.preventDefault());
addEventListener("drop", (event) => { event.preventDefault(); label(event.dataTransfer.files); });
place("files").addEventListener("change", (event) => label(event.target.files));
document.body.dataset.ready = "yes";
await prove();
