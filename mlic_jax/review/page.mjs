// The page of a review: shows a question, sends its answer, and shows the next one once that is kept.

const at = (id) => document.getElementById(id);
const percent = (share) => `${(100 * share).toFixed(2)}%`;
const chance = (value) => (value === null ? "cannot say" : value.toFixed(2));
const KINDS = {
  disagreement: "People disagree.",
  missing: "It may be missing.",
  wrong: "It may be wrong.",
  unlabelled: "Nothing is known of this photo.",
  again: "Taken back.",
};

let list = "doubtful"; // which of the two is shown
let shown = null; // the question
let passed = []; // [photo, class] of all that were shown
let busy = false;
let named = ""; // the --who of the server

async function ask(path, content = {}) {
  const response = await fetch(path, {
    method: "POST",
    headers: { "Content-Type": "application/json" },
    body: JSON.stringify(content),
  });
  if (!response.ok) throw new Error(await response.text());
  return response.json();
}

const next = (more = []) => ask("/next", { list, passed: [...passed, ...more] });

function show({ question, open, notes }) {
  shown = question;
  if (notes.length) at("note").textContent = notes.join("; ");
  at("view").hidden = at("probe").hidden = !question;
  at("boxed").hidden = !question?.box;
  at("rest").hidden = !question || question.open_classes < 2;
  for (const button of document.querySelectorAll("[data-answer], #skip")) button.disabled = !question;
  for (const id of ["said", "others", "where"]) at(id).textContent = "";
  document.body.dataset.question = question ? `${question.split}/${question.photo}/${question.class}` : "none";
  if (!question) {
    at("question").textContent = "There is nothing left to ask here.";
    return;
  }
  at("question").replaceChildren("Is there ", Object.assign(document.createElement("strong"), { textContent: question.class }), "?");
  const people = question.people.map(({ who, answer }) => `${who} says ${answer}`).join(", ");
  at("said").textContent =
    `${KINDS[question.kind]} The annotations say ${question.said}${people && `, ${people}`}; ` +
    `the probe ${chance(question.probability)}, the model ${chance(question.model)}.`;
  at("others").textContent = question.present.length ? `Labels of the photo: ${question.present.join(", ")}` : "";
  at("where").textContent = `${question.split}/${question.photo}` + (open ? `, ${open.toLocaleString("en")} open` : "");
  at("photo").src = question.image;
  at("photo").alt = `${question.split}/${question.photo}`;
  at("box").hidden = !question.box;
  if (question.box) {
    const [left, top, width, height] = question.box.map(percent);
    Object.assign(at("box").style, { left, top, width, height });
  }
  look_ahead();
}

at("photo").addEventListener("load", ({ target }) => {
  at("view").style.setProperty("--wide", target.naturalWidth);
  at("view").style.setProperty("--high", target.naturalHeight);
});

// While this one is looked at the model looks at the next photo, and the browser loads it. What is
// said of it is asked for again: this answer may change that.
function look_ahead() {
  next([[shown.row, shown.class_index]]).then(
    ({ question }) => question && (new Image().src = question.image),
    () => {},
  );
}

// Runs one thing at a time; what goes wrong is a line, and the question stays.
async function once(work) {
  if (busy) return;
  busy = document.body.ariaBusy = true;
  try {
    at("note").textContent = "";
    await work();
  } catch (error) {
    at("note").textContent = error instanceof TypeError ? "the program does not answer: is it still running?" : error.message;
  } finally {
    busy = false;
    document.body.ariaBusy = "false";
  }
}

async function go_on() {
  if (shown) passed.push([shown.row, shown.class_index]);
  show(await next());
}

const give = (path, content) =>
  once(async () => {
    await ask(path, { ...content, who: at("who").value });
    await go_on();
  });

const say = (word) => shown && give("/answer", { answers: [[shown.row, shown.class_index, word]] });
const skip = () => shown && once(go_on);
const rest = () => shown && !at("rest").hidden && give("/rest", { row: shown.row });
const undo = () => once(async () => {
  const found = await ask("/undo", { who: at("who").value });
  if (found.question) show(found);
  else at("note").textContent = found.notes.join();
});
const retrain = () => once(async () => {
  at("note").textContent = "the probe is fitted ...";
  const { seconds, mAP, doubtful, unlabelled } = await ask("/retrain");
  const worth = mAP === null ? "" : `, mAP ${mAP.toFixed(1)} on photos that it did not see`;
  show(await next());
  at("note").textContent = `fitted in ${seconds} s${worth}; ${doubtful} labels in doubt, ${unlabelled} photos without labels`;
});

function choose(name) {
  once(async () => {
    list = name;
    for (const id of ["doubtful", "unlabelled"]) at(id).ariaPressed = String(id === name);
    show(await next());
  });
}

const KEYS = { s: skip, r: rest, z: undo, Backspace: undo };
for (const button of document.querySelectorAll("[data-answer]")) {
  const word = button.dataset.answer;
  KEYS[word[0]] = () => say(word);
  button.addEventListener("click", KEYS[word[0]]);
}
for (const [id, work] of Object.entries({ skip, rest, undo, retrain })) at(id).addEventListener("click", work);
for (const id of ["doubtful", "unlabelled"]) at(id).addEventListener("click", () => choose(id));
document.addEventListener("keydown", (event) => {
  const work = KEYS[event.key.length === 1 ? event.key.toLowerCase() : event.key];
  if (!work || event.repeat || event.ctrlKey || event.altKey || event.metaKey || event.target === at("who")) return;
  event.preventDefault();
  work();
});
at("who").addEventListener("change", () => localStorage.setItem(`who ${named}`, at("who").value));

once(async () => {
  const { who, open } = await ask("/start");
  named = who;  // another --who is another person, whatever name was typed before
  at("who").value = localStorage.getItem(`who ${named}`) || who;
  for (const [name, count] of Object.entries(open)) at(name).disabled = !count;
  list = open.doubtful || !open.unlabelled ? "doubtful" : "unlabelled";
  for (const id of ["doubtful", "unlabelled"]) at(id).ariaPressed = String(id === list);
  show(await next());
});
