// The page at "/": talks with the service's own routes; what a model says is only ever set as text.

const $ = (id) => document.getElementById(id);
const N_BARS = 12;
const messages = []; // the conversation: {role, content}
let model = null; // what /microgpt/v1/model tells
let running = null; // AbortController of the reply that is being streamed
let asking = null; // and of the question what comes next

function tell(problem) {
  $("problem").textContent = problem;
}

function numberOf(id) {
  return $(id).value === "" ? undefined : Number($(id).value);
}

// How texts are drawn; fields that are undefined are not sent.
function knobs() {
  return {
    temperature: numberOf("temperature"),
    top_p: numberOf("top_p"),
    top_k: numberOf("top_k"),
    max_tokens: numberOf("max_tokens"),
    seed: numberOf("seed"),
  };
}

async function post(path, body, signal) {
  const response = await fetch(path, {
    method: "POST",
    headers: { "Content-Type": "application/json" },
    body: JSON.stringify(body),
    signal,
  });
  if (response.ok) return response;
  const { error } = await response.json().catch(() => ({ error: response.statusText }));
  throw new Error(error.message ?? error);
}

// Yields the events of a stream, parsed.
async function* events(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let pending = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    const parts = (pending + value).split("\n\n");
    pending = parts.pop();
    for (const part of parts) {
      const data = part.replace(/^data: /, "");
      if (data === "[DONE]") return;
      const event = JSON.parse(data);
      if (event.error) throw new Error(event.error.message);
      yield event;
    }
  }
}

// ---------------------------------------------------------------- conversation

function addTurn(kind, text) {
  const turn = document.createElement("li");
  turn.className = kind;
  turn.textContent = text;
  $("turns").append(turn);
  turn.scrollIntoView({ block: "nearest" });
  return turn;
}

function setRunning(controller) {
  running = controller;
  $("stop").disabled = controller === null;
  $("send").disabled = controller !== null;
}

async function ask(text) {
  tell("");
  const question = { role: "user", content: text };
  const reply = { role: "assistant", content: "" };
  const { seed, temperature, top_p, max_tokens } = knobs(); // this route knows no top_k
  const body = { model: model.id, messages: [...messages, question], stream: true, seed, temperature, top_p, max_tokens };
  const asked = addTurn("user", text);
  const turn = addTurn("assistant", "");
  const controller = new AbortController();
  setRunning(controller);
  try {
    for await (const event of events(await post("/v1/chat/completions", body, controller.signal))) {
      reply.content += event.choices[0]?.delta.content ?? "";
      turn.textContent = reply.content;
      turn.scrollIntoView({ block: "nearest" });
    }
  } catch (error) {
    if (error.name !== "AbortError") tell(error.message);
    else if (turn.isConnected) addTurn("note", "stopped");
  }
  if (running === controller) setRunning(null);
  if (!turn.isConnected) return; // cleared meanwhile
  if (reply.content) messages.push(question, reply);
  else {
    // Nothing was said: the question is given back, so that the model never sees it unanswered.
    asked.remove();
    turn.remove();
    if (!$("message").value) $("message").value = text;
  }
  showNext();
}

$("ask").addEventListener("submit", (event) => {
  event.preventDefault();
  const text = $("message").value.trim();
  if (!text || running) return;
  $("message").value = "";
  ask(text);
});
$("message").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
    event.preventDefault();
    $("ask").requestSubmit();
  }
});
$("stop").addEventListener("click", () => running?.abort());
$("clear").addEventListener("click", () => {
  running?.abort();
  setRunning(null);
  messages.length = 0;
  $("turns").replaceChildren();
  tell("");
  $("message").focus();
  showNext();
});

// ---------------------------------------------------------------- samples

$("generate").addEventListener("submit", async (event) => {
  event.preventDefault();
  tell("");
  try {
    const { seed = Math.floor(Math.random() * 2 ** 32), ...others } = knobs();
    const body = { prompt: $("prompt").value, num_samples: numberOf("count"), seed, ...others };
    const { samples } = await (await post("/microgpt/v1/generate", body)).json();
    $("texts").replaceChildren(
      ...samples.map((sample) => {
        const item = document.createElement("li");
        item.textContent = sample || "(empty)";
        return item;
      }),
    );
  } catch (error) {
    tell(error.message);
  }
});

// ---------------------------------------------------------------- next token

const NAMES = { " ": "space", "\n": "new line", "\t": "tab" };

function bar({ token, probability, is_special }) {
  const row = document.createElement("tr");
  const meter = document.createElement("meter");
  meter.value = probability;
  const percent = `${(100 * probability).toFixed(1)} %`;
  meter.textContent = percent;
  for (const content of [is_special ? `<${token}>` : (NAMES[token] ?? token), meter, percent]) {
    const cell = document.createElement("td");
    cell.append(content);
    row.append(cell);
  }
  return row;
}

// For chat models: what a reply to this would begin with.
async function showNext() {
  asking?.abort(); // of two answers, the later one may come first
  asking = new AbortController();
  const text = $("before").value;
  const turn = { role: "user", content: text };
  const body = model.is_chat ? { messages: [...messages, turn] } : { prompt: text };
  try {
    const { tokens } = await (await post("/microgpt/v1/next", body, asking.signal)).json();
    $("bars").tBodies[0].replaceChildren(...tokens.slice(0, N_BARS).map(bar));
    $("bars-problem").textContent = "";
  } catch (error) {
    if (error.name !== "AbortError") $("bars-problem").textContent = error.message;
  }
}

$("before").addEventListener("input", showNext);

// ---------------------------------------------------------------- start

for (const id of ["temperature", "top_p"]) {
  $(id).addEventListener("input", () => ($(`${id}-shown`).textContent = $(id).value));
}

async function start() {
  const response = await fetch("/microgpt/v1/model").catch(() => null);
  if (!response?.ok) {
    $("model").textContent = response?.status === 503 ? "loading the model…" : "the service does not answer";
    setTimeout(start, 500);
    return;
  }
  model = await response.json();
  const { id, n_params, n_layer, n_head, n_embd, block_size } = model;
  $("model").textContent =
    `${id}: ${n_params.toLocaleString("en")} parameters, ${n_layer} layers, ` +
    `${n_head} heads, ${n_embd} wide, ${block_size} tokens of context`;
  $(model.is_chat ? "chat" : "samples").hidden = false;
  $("top_k-knob").hidden = model.is_chat;
  $(model.is_chat ? "message" : "prompt").focus();
  showNext();
}

start();
