// The demo's page: all of a visitor's state is here, every request carries what it needs.
"use strict";
const at = (id) => document.getElementById(id);

function settings(group) {
  const sliders = document.querySelectorAll(`input[data-group=${group}]`);
  return Object.fromEntries([...sliders].map((slider) => [slider.name, Number(slider.value)]));
}

async function post(address, content, signal) {
  const headers = { "Content-Type": "application/json" };
  try {
    return await fetch(address, { method: "POST", headers, body: JSON.stringify(content), signal });
  } catch (mistake) {
    throw mistake.name === "AbortError" ? mistake : new Error(`The demo does not answer (${mistake.message}).`);
  }
}

async function problem(response) {
  const said = await response.json().catch(() => ({})); // a proxy's own pages are no JSON
  return said.error || `the server answers with status ${response.status}`;
}

for (const slider of document.querySelectorAll("input[type=range]")) {
  slider.addEventListener("input", () => {
    slider.nextElementSibling.value = Number(slider.value);
    if (slider.dataset.group === "step") step();
  });
}

// ---- chat

let messages = [];
let asking = null; // the AbortController of the reply that is being written

function bubble(kind) {
  const made = document.createElement("div");
  made.className = `said ${kind}`;
  at("said").firstElementChild.append(made);
  return made;
}

function remark(text) {
  const made = document.createElement("p");
  made.className = "note";
  made.textContent = text;
  at("said").firstElementChild.append(made);
}

function chatButtons() {
  at("send").disabled = asking !== null;
  at("stop").disabled = asking === null;
  at("reset").disabled = messages.length === 0;
}

async function* lines(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    const parts = (rest + value).split("\n");
    rest = parts.pop();
    yield* parts;
  }
}

async function ask(question) {
  if (messages.length === 0) at("said").firstElementChild.replaceChildren();
  const mine = (asking = new AbortController());
  const conversation = messages;
  conversation.push({ role: "user", content: question });
  bubble("you").textContent = question;
  const reply = bubble("model");
  const answer = { role: "assistant", content: "" };
  chatButtons();
  try {
    const response = await post("chat", { messages: conversation, sampling: settings("chat") }, mine.signal);
    if (!response.ok) throw new Error(await problem(response));
    let ended = false;
    for await (const line of lines(response)) {
      const piece = JSON.parse(line);
      if (piece.error) throw new Error(piece.error);
      if (piece.note) remark(piece.note);
      ended = Boolean(piece.end);
      answer.content += piece.text;
      reply.insertAdjacentHTML("beforeend", piece.html);
    }
    if (!ended) throw new Error("The reply has broken off.");
  } catch (mistake) {
    if (mistake.name === "AbortError") {
      if (conversation === messages) remark("stopped");
    } else at("chat-wrong").textContent = mistake.message;
  }
  if (!reply.textContent) reply.textContent = "…";
  conversation.push(answer);
  if (asking === mine) asking = null;
  chatButtons();
}

at("ask").addEventListener("submit", (event) => {
  event.preventDefault();
  const question = at("message").value.trim();
  if (!question || asking) return;
  at("chat-wrong").textContent = "";
  at("message").value = "";
  ask(question);
});
at("stop").addEventListener("click", () => asking && asking.abort());
at("reset").addEventListener("click", () => {
  if (asking) asking.abort();
  messages = [];
  at("said").firstElementChild.innerHTML = '<p class="note">Nothing said yet.</p>';
  chatButtons();
});

// ---- one token at a time

let chosen = [];
let moves = Promise.resolve(); // one after the other: each begins where the one before has ended
let looks = 0;

function step(move) {
  const look = ++looks;
  moves = moves.then(() => (move || look === looks ? send(move) : undefined)); // of many looks in a row only the last
}

async function send(move) {
  if (move && move.begin) chosen = [];
  if (move && move.undo) chosen = chosen.slice(0, -1);
  const content = { prompt: at("prompt").value, chat: at("as-chat").checked, chosen, sampling: settings("step"), ...move };
  try {
    const response = await post("step", content);
    if (!response.ok) throw new Error(await problem(response));
    const answer = await response.json();
    at("step-wrong").textContent = "";
    chosen = answer.chosen;
    at("text").innerHTML = answer.text;
    show(answer.candidates);
    at("draw").disabled = at("draw-ten").disabled = answer.ended;
    at("undo").disabled = chosen.length === 0;
  } catch (mistake) {
    at("step-wrong").textContent = mistake.message;
  }
}

function show(candidates) {
  const rows = at("candidates");
  while (rows.children.length < candidates.length) {
    const row = document.createElement("div");
    const take = document.createElement("button");
    take.title = "take this token";
    take.addEventListener("click", () => step({ take: Number(take.value) }));
    row.append(take, document.createElement("span"));
    rows.append(row);
  }
  [...rows.children].forEach((row, i) => {
    row.style.visibility = i < candidates.length ? "visible" : "hidden";
    if (i >= candidates.length) return;
    row.firstChild.value = candidates[i].token;
    row.firstChild.innerHTML = candidates[i].name;
    row.lastChild.innerHTML = candidates[i].bar;
  });
}

function begin() {
  step({ begin: true });
}

at("begin").addEventListener("submit", (event) => {
  event.preventDefault();
  begin();
});
at("as-chat").addEventListener("change", begin);
at("draw").addEventListener("click", () => step({ draw: 1 }));
at("draw-ten").addEventListener("click", () => step({ draw: 10 }));
at("undo").addEventListener("click", () => step({ undo: true }));
begin();
