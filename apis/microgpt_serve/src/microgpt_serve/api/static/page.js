// The page at "/": calls the routes of the service; model output is inserted as text, never as markup.

const $ = (id) => document.getElementById(id);
const N_BARS = 16;
const NARROW = "(max-width: 52rem)"; // as in the style sheet
const messages = []; // the conversation: {role, content}
let model = null; // the response of microgpt/v1/model
let next = []; // the tokens of the response of microgpt/v1/next
let running = null; // AbortController of the streamed reply
let asking = null; // AbortController of the request for the next token
let sampling = null; // AbortController of the request for samples

// A problem has one place, where later ones replace it; equal ones are not announced again.
function showProblem(problem) {
  if ($("problem").textContent === problem) return;
  const follows = isAtEnd();
  $("problem").textContent = problem;
  if (follows) toEnd();
}
document.querySelector("main").addEventListener("input", () => showProblem(""));

// Whether all numbers are valid; the browser explains the first that is not, and moves the focus there.
function areValid() {
  const invalid = [...document.querySelectorAll("main input")].find((input) => !input.checkValidity());
  if (invalid?.closest("details")) invalid.closest("details").open = true;
  return !invalid || invalid.reportValidity();
}

function numberOf(id) {
  return $(id).value === "" ? undefined : Number($(id).value);
}

// Sampling options; undefined fields are not sent.
function samplingOptions() {
  return {
    temperature: numberOf("temperature"),
    top_p: numberOf("top_p"),
    top_k: $("top_k").validity.valid ? numberOf("top_k") : undefined,
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
    body: JSON.stringify({ model: model.id, ...body }),
    signal,
  }).catch((error) => {
    throw error.name === "AbortError" ? error : new Error("The service does not answer.");
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

// Adds a turn or a note at the end, or before a turn.
function addTurn(kind, text, later = null) {
  const turn = document.createElement("li");
  turn.className = kind;
  turn.textContent = text;
  $("turns").insertBefore(turn, later);
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

// Says what the model does not read of a request; empty if it reads all.
function leftOut(n_tokens, unknown) {
  const parts = [];
  if (n_tokens > 0) parts.push(`${count(n_tokens, "token")} from the start dropped: the text is longer than the context`);
  if (unknown) parts.push(`unknown to the model and left out: ${[...unknown].map(shown).join(" ")}`);
  return parts.join("; ");
}

// Returns what the model is sent: the system message if there is one, the conversation, a question.
function asked(question) {
  const system = model.has_system && $("system").value.trim();
  return [...(system ? [{ role: "system", content: system }] : []), ...messages, question];
}

async function ask(text) {
  showProblem("");
  const question = { role: "user", content: text };
  const reply = { role: "assistant", content: "" };
  const body = { messages: asked(question), stream: true, ...samplingOptions() };
  const questionTurn = addTurn("user", text);
  const turn = addTurn("assistant", "");
  turn.ariaBusy = "true"; // screen readers wait until the reply is complete
  let reason = "";
  let note = null; // on the question
  const controller = new AbortController();
  setRunning(controller);
  try {
    const response = await post("v1/chat/completions", body, controller.signal);
    const header = (name) => response.headers.get(`X-Microgpt-${name}`) ?? "";
    const lost = leftOut(Number(header("Tokens-Dropped")), decodeURIComponent(header("Unknown")));
    if (lost && turn.isConnected) note = addTurn("note", lost, turn);
    for await (const event of events(response)) {
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
    note?.remove();
    turn.remove();
    if (!$("message").value) $("message").value = text;
  }
  showNext();
}

$("ask").addEventListener("submit", (event) => {
  event.preventDefault();
  const text = $("message").value.trim();
  if (!text || running || !areValid()) return;
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
$("system").addEventListener("input", () => {
  $("system-shown").textContent = $("system").value;
  showNext();
});
$("stop").addEventListener("click", ({ detail }) => {
  running?.abort();
  if (detail === 0) $("message").focus(); // by keyboard: the button that has the focus gets disabled
});
document.addEventListener("keydown", (event) => {
  if (event.key === "Escape") running?.abort();
});
function clear() {
  running?.abort();
  sampling?.abort();
  setRunning(null);
  messages.length = 0;
  $("turns").replaceChildren();
  $("texts").replaceChildren();
  showProblem("");
}
$("clear").addEventListener("click", () => {
  clear();
  $("message").focus();
  showNext();
});

// ---------------------------------------------------------------- samples

$("generate").addEventListener("submit", async (event) => {
  event.preventDefault();
  if (!areValid()) return;
  showProblem("");
  sampling?.abort();
  sampling = new AbortController();
  const { signal } = sampling;
  try {
    const { seed = Math.floor(Math.random() * 2 ** 32), ...others } = samplingOptions();
    const body = { prompt: $("prompt").value, num_samples: numberOf("count"), seed, ...others };
    const { samples } = await (await post("microgpt/v1/generate", body, signal)).json();
    $("texts").replaceChildren(
      ...samples.map((sample) => {
        const item = document.createElement("li");
        item.textContent = sample || "(empty)";
        return item;
      }),
    );
  } catch (error) {
    if (signal.aborted) return;
    $("texts").replaceChildren();
    showProblem(error.message);
  }
});

// ---------------------------------------------------------------- next token

const NAMES = { " ": "space", "\n": "new line", "\t": "tab" };
const MARKS = { " ": "␣", "\n": "↵", "\t": "⇥" }; // within longer tokens

function shown(token) {
  return NAMES[token] ?? token.replace(/[ \n\t]/g, (char) => MARKS[char]);
}

// Returns the tokens that can be drawn, with the probabilities of the draw; `tokens` as in `next`.
function drawn(tokens) {
  const { temperature, top_k, top_p } = samplingOptions();
  let kept = tokens.filter(({ token, is_special }) => !is_special || !model.is_chat || token === "end_turn");
  const largest = kept[0].probability;
  if (temperature === 0) return [{ ...kept[0], probability: 1 }];
  const weight = ({ probability }) => (probability / largest) ** (1 / temperature);
  kept = kept.map((token) => ({ ...token, probability: weight(token) })).slice(0, top_k);
  const total = () => kept.reduce((sum, { probability }) => sum + probability, 0);
  if (top_p < 1) {
    const threshold = top_p * total();
    let reached = 0;
    kept = kept.slice(0, 1 + kept.findIndex(({ probability }) => (reached += probability) >= threshold));
  }
  const sum = total();
  return kept.map((token) => ({ ...token, probability: token.probability / sum }));
}

function bar({ token, probability, is_special }, largest) {
  const row = document.createElement("tr");
  const name = document.createElement("th");
  name.scope = "row";
  name.textContent = is_special ? `<${token}>` : shown(token);
  const length = document.createElement("div");
  length.style.width = `${(100 * probability) / largest}%`;
  row.append(name);
  for (const content of [length, probability < 0.001 ? "< 0.1 %" : `${(100 * probability).toFixed(1)} %`]) {
    const cell = document.createElement("td");
    cell.append(content);
    row.append(cell);
  }
  return row;
}

function drawBars() {
  const tokens = next.length ? drawn(next).slice(0, N_BARS) : [];
  $("bars").tBodies[0].replaceChildren(...tokens.map((token) => bar(token, tokens[0].probability)));
}

// Shows the most likely next tokens; for a chat model, the first tokens of a reply.
async function showNext() {
  asking?.abort(); // responses may arrive out of order
  asking = new AbortController();
  const { signal } = asking;
  const text = model.is_chat ? $("message").value.trim() : $("prompt").value;
  const isEmpty = model.is_chat && !text;
  const body = model.is_chat ? { messages: asked({ role: "user", content: text }) } : { prompt: text };
  $("bars").ariaBusy = "true";
  let note = isEmpty ? "Type a message to see how a reply may begin." : "";
  try {
    const answer = isEmpty ? { tokens: [] } : await (await post("microgpt/v1/next", body, signal)).json();
    next = answer.tokens;
    note ||= leftOut(answer.tokens_dropped, answer.unknown);
  } catch (error) {
    if (signal.aborted) return;
    next = [];
    showProblem(error.message);
  }
  $("next-note").textContent = note;
  drawBars();
  $("bars").ariaBusy = "false";
}

$("prompt").addEventListener("input", showNext);

// ---------------------------------------------------------------- start

$("knobs").addEventListener("input", drawBars);
for (const id of ["temperature", "top_p"]) {
  $(id).addEventListener("input", () => ($(`${id}-shown`).textContent = $(id).value));
}

function count(n, thing) {
  return `${n.toLocaleString("en")} ${thing}${n === 1 ? "" : "s"}`;
}

// Lists the models in the header, if there are several.
async function listModels() {
  if ($("models").length) return;
  const response = await fetch("v1/models", { headers: headers({}) }).catch(() => null);
  const { data } = response?.ok ? await response.json() : { data: [] };
  if (data.length < 2) return;
  $("models").append(...data.map(({ id }) => new Option(id, id, id === model.id, id === model.id)));
  $("models").hidden = false;
}
$("models").addEventListener("change", () => {
  clear();
  start();
});

async function start() {
  const chosen = $("models").value;
  const path = `microgpt/v1/model${chosen && `?model=${encodeURIComponent(chosen)}`}`;
  const response = await fetch(path, { headers: headers({}) }).catch(() => null);
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
  const described = await response.json();
  if ($("models").value !== chosen) return; // another one was chosen meanwhile
  clear(); // what the model before was asked meanwhile
  model = described;
  await listModels();
  const { id, n_params, n_layer, n_head, n_embd, block_size } = model;
  $("model").textContent = [
    ...($("models").hidden ? [id] : []),
    count(n_params, "parameter"),
    count(n_layer, "layer"),
    count(n_head, "head"),
    `${n_embd} wide`,
    `context of ${count(block_size, "token")}`,
  ].join(" · ");
  $("next-of").textContent = model.is_chat ? "First token of a reply to your message" : "Next token after your beginning";
  $("top_k").max = model.vocab_size;
  document.querySelector("aside details").open = !matchMedia(NARROW).matches;
  await showNext(); // before the page is shown, so that nothing moves
  $("chat").hidden = !model.is_chat;
  $("instructions").hidden = !model.has_system;
  $("samples").hidden = model.is_chat;
  $(model.is_chat ? "ask" : "texts").before($("problem"));
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
