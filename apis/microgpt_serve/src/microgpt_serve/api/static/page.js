// The page at "/": calls the routes of the service; model output is inserted as text, never as markup.

const $ = (id) => document.getElementById(id);
const N_BARS = 10;
const NARROW = "(max-width: 52rem)"; // as in the style sheet
const messages = []; // the conversation: {role, content}
let model = null; // the response of /microgpt/v1/model
let running = null; // AbortController of the streamed reply
let asking = null; // AbortController of the request for the next token

function showProblem(problem) {
  $("problem").textContent = problem;
}

function numberOf(id) {
  return $(id).value === "" ? undefined : Number($(id).value);
}

// Sampling options; undefined fields are not sent.
function samplingOptions() {
  return {
    temperature: numberOf("temperature"),
    top_p: numberOf("top_p"),
    top_k: numberOf("top_k"),
    max_tokens: numberOf("max_tokens"),
    seed: numberOf("seed"),
  };
}

// Returns request headers with the API key, if there is one; it is kept until the tab is closed.
function headers(others) {
  const key = sessionStorage.getItem("key");
  return key ? { ...others, Authorization: `Bearer ${key}` } : others;
}

async function post(path, body, signal) {
  const response = await fetch(path, {
    method: "POST",
    headers: headers({ "Content-Type": "application/json" }),
    body: JSON.stringify(body),
    signal,
  });
  if (response.ok) return response;
  const { error } = await response.json().catch(() => ({ error: response.statusText }));
  throw new Error(error.message ?? error);
}

// Yields the parsed events of a stream.
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
  toEnd();
  return turn;
}

function toEnd() {
  $("turns").scrollTop = $("turns").scrollHeight;
}

// Whether the end of the conversation is visible: the reader has not scrolled back.
function isAtEnd() {
  const { scrollTop, scrollHeight, clientHeight } = $("turns");
  return scrollHeight - scrollTop - clientHeight < 40;
}

// Scrolls to the end once per frame: reading the layout costs more the longer the text is, and the
// model may be faster than the screen.
let frame = 0;
function followText() {
  if (frame) return;
  const follows = isAtEnd();
  frame = requestAnimationFrame(() => {
    frame = 0;
    if (follows) toEnd();
  });
}

function setRunning(controller) {
  running = controller;
  $("stop").disabled = controller === null;
  $("send").disabled = controller !== null;
}

async function ask(text) {
  showProblem("");
  const question = { role: "user", content: text };
  const reply = { role: "assistant", content: "" };
  const { seed, temperature, top_p, max_tokens } = samplingOptions(); // this route has no top_k
  const body = { model: model.id, messages: [...messages, question], stream: true, seed, temperature, top_p, max_tokens };
  const questionTurn = addTurn("user", text);
  const turn = addTurn("assistant", "");
  turn.ariaBusy = "true"; // screen readers wait until the reply is complete
  let reason = "";
  const controller = new AbortController();
  setRunning(controller);
  try {
    for await (const event of events(await post("v1/chat/completions", body, controller.signal))) {
      followText();
      turn.append(event.choices[0]?.delta.content ?? "");
      if (event.choices[0]?.finish_reason === "length") reason = "cut off at the maximum length";
    }
  } catch (error) {
    if (error.name === "AbortError") reason = "stopped";
    else showProblem(error.message);
  }
  reply.content = turn.textContent;
  turn.ariaBusy = "false";
  if (reason && turn.isConnected) addTurn("note", reason);
  if (running === controller) setRunning(null);
  if (!turn.isConnected) return; // the conversation was cleared
  if (reply.content) messages.push(question, reply);
  else {
    // An empty reply: the question is put back, so that the model never sees it unanswered.
    questionTurn.remove();
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
$("message").addEventListener("input", showNext);
$("stop").addEventListener("click", () => running?.abort());
document.addEventListener("keydown", (event) => {
  if (event.key === "Escape") running?.abort();
});
$("clear").addEventListener("click", () => {
  running?.abort();
  setRunning(null);
  messages.length = 0;
  $("turns").replaceChildren();
  showProblem("");
  $("message").focus();
  showNext();
});

// ---------------------------------------------------------------- samples

$("generate").addEventListener("submit", async (event) => {
  event.preventDefault();
  showProblem("");
  try {
    const { seed = Math.floor(Math.random() * 2 ** 32), ...others } = samplingOptions();
    const body = { prompt: $("prompt").value, num_samples: numberOf("count"), seed, ...others };
    const { samples } = await (await post("microgpt/v1/generate", body)).json();
    $("texts").replaceChildren(
      ...samples.map((sample) => {
        const item = document.createElement("li");
        item.textContent = sample || "(empty)";
        return item;
      }),
    );
  } catch (error) {
    showProblem(error.message);
  }
});

// ---------------------------------------------------------------- next token

const NAMES = { " ": "space", "\n": "new line", "\t": "tab" };
const MARKS = { " ": "␣", "\n": "↵", "\t": "⇥" }; // within longer tokens

function bar({ token, probability, is_special }) {
  const row = document.createElement("tr");
  const name = document.createElement("th");
  name.scope = "row";
  name.textContent = is_special ? `<${token}>` : (NAMES[token] ?? token.replace(/[ \n\t]/g, (char) => MARKS[char]));
  const length = document.createElement("div");
  length.style.width = `${100 * probability}%`;
  row.append(name);
  for (const content of [length, probability < 0.001 ? "< 0.1 %" : `${(100 * probability).toFixed(1)} %`]) {
    const cell = document.createElement("td");
    cell.append(content);
    row.append(cell);
  }
  return row;
}

// Shows the most likely next tokens; for a chat model, the first tokens of a reply.
async function showNext() {
  asking?.abort(); // responses may arrive out of order
  asking = new AbortController();
  const text = $(model.is_chat ? "message" : "prompt").value;
  const turn = { role: "user", content: text };
  const body = model.is_chat ? { messages: [...messages, turn] } : { prompt: text };
  try {
    const { tokens } = await (await post("microgpt/v1/next", body, asking.signal)).json();
    $("bars").tBodies[0].replaceChildren(...tokens.slice(0, N_BARS).map(bar));
    $("bars-problem").textContent = "";
  } catch (error) {
    if (error.name !== "AbortError") $("bars-problem").textContent = error.message;
  }
}

$("prompt").addEventListener("input", showNext);

// ---------------------------------------------------------------- start

for (const id of ["temperature", "top_p"]) {
  $(id).addEventListener("input", () => ($(`${id}-shown`).textContent = $(id).value));
}

function count(n, thing) {
  return `${n.toLocaleString("en")} ${thing}${n === 1 ? "" : "s"}`;
}

async function start() {
  const response = await fetch("microgpt/v1/model", { headers: headers({}) }).catch(() => null);
  $("unlock").hidden = response?.status !== 401;
  if (response?.status === 401) {
    $("model").textContent = "";
    $("key-problem").textContent = sessionStorage.getItem("key") ? "This is not the key." : "";
    $("key").focus();
    return;
  }
  if (!response?.ok) {
    $("model").textContent = response?.status === 503 ? "loading the model…" : "the service does not answer";
    setTimeout(start, 500);
    return;
  }
  model = await response.json();
  const { id, n_params, n_layer, n_head, n_embd, block_size } = model;
  $("model").textContent = [
    id,
    count(n_params, "parameter"),
    count(n_layer, "layer"),
    count(n_head, "head"),
    `${n_embd} wide`,
    `context of ${count(block_size, "token")}`,
  ].join(" · ");
  $("next-of").textContent = model.is_chat ? "First token of a reply to your message" : "Next token after your beginning";
  $("top_k-knob").hidden = model.is_chat;
  document.querySelector("details").open = !matchMedia(NARROW).matches;
  await showNext(); // before the page is shown, so that nothing moves
  $(model.is_chat ? "chat" : "samples").hidden = false;
  document.querySelector("main").hidden = false;
  $(model.is_chat ? "message" : "prompt").focus();
}

$("unlock").addEventListener("submit", (event) => {
  event.preventDefault();
  sessionStorage.setItem("key", $("key").value.trim());
  $("key").value = "";
  start();
});

start();
