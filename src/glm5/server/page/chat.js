// The chat page: one conversation in OpenAI's format, streamed from this server. What a model writes is only ever put
// into text nodes, so it can be seen but not run.

const $ = (id) => document.getElementById(id);
const talk = $("talk");
const MAX_ROUNDS = 8; // of tool calls behind one message

const TOOLS = {
  current_time: {
    description: "The date and time now, in a time zone.",
    parameters: { type: "object", properties: { time_zone: { type: "string", description: "Such as Europe/Berlin" } } },
    run: ({ time_zone }) => new Date().toLocaleString("en-GB", { timeZone: time_zone || undefined, timeZoneName: "short" }),
  },
  roll_dice: {
    description: "Roll dice.",
    parameters: { type: "object", properties: { count: { type: "integer" }, sides: { type: "integer" } } },
    run: ({ count = 1, sides = 6 }) =>
      Array.from({ length: Math.min(count, 100) }, () => 1 + Math.floor(Math.random() * sides)).join(", "),
  },
};

let messages = [];
let model = null;
let running = null; // the AbortController of the answer being written

// -- small helpers

function element(tag, className, ...children) {
  const made = document.createElement(tag);
  if (className) made.className = className;
  made.append(...children);
  return made;
}

const seconds = (ms) => `${(ms / 1000).toFixed(ms < 10000 ? 1 : 0)} s`;
const headers = () => {
  const key = $("key").value.trim();
  return { "content-type": "application/json", ...(key ? { authorization: `Bearer ${key}` } : {}) };
};

function stayAtTheEnd(change) {
  const atEnd = talk.scrollHeight - talk.scrollTop - talk.clientHeight < 80;
  change();
  if (atEnd) talk.scrollTop = talk.scrollHeight;
}

// Fenced code, `code` and **bold**; everything else as it stands.
function formatted(text) {
  return text.split(/(```[^\n]*\n[\s\S]*?(?:```|$))/).flatMap((block) => {
    if (block.startsWith("```")) {
      const code = block.replace(/^```[^\n]*\n/, "").replace(/\n?```$/, "");
      return [element("pre", "", element("code", "", code))];
    }
    return block.split(/\n{2,}/).filter((part) => part.trim()).map((part) => element("p", "", ...inline(part.trim())));
  });
}

const inline = (text) =>
  text.split(/(`[^`\n]+`|\*\*[^*\n]+\*\*)/).map((part) => {
    if (/^`.+`$/.test(part)) return element("code", "", part.slice(1, -1));
    if (/^\*\*.+\*\*$/.test(part)) return element("b", "", part.slice(2, -2));
    return part;
  });

// -- one answer on the page

class Answer {
  constructor() {
    this.root = element("article", "turn busy");
    this.message = { role: "assistant", content: "" };
    this.begin = performance.now();
    this.first = null; // when the first token came
    this.usage = null;
    this.finish = null;
    this.drawing = false;
    talk.append(this.root);
  }

  take(chunk) {
    if (chunk.error) throw new Error(chunk.error.message);
    this.usage = chunk.usage || this.usage;
    for (const { delta, finish_reason } of chunk.choices) {
      const text = delta.reasoning_content || delta.content || delta.tool_calls;
      if (text && this.first === null) this.first = performance.now();
      if (delta.reasoning_content) this.message.reasoning_content = (this.message.reasoning_content || "") + delta.reasoning_content;
      if (delta.content) {
        this.thoughtTime ??= performance.now() - this.begin;
        this.message.content += delta.content;
      }
      for (const call of delta.tool_calls || []) this.takeCall(call);
      this.finish = finish_reason || this.finish;
    }
    if (!this.drawing) {
      this.drawing = true;
      requestAnimationFrame(() => { this.drawing = false; stayAtTheEnd(() => this.draw()); });
    }
  }

  takeCall({ index, id, function: { name, arguments: fragment } }) {
    this.thoughtTime ??= performance.now() - this.begin;
    const calls = (this.message.tool_calls ??= []);
    calls[index] ??= { id, type: "function", function: { name, arguments: "" } };
    calls[index].function.arguments += fragment || "";
  }

  draw() {
    if (this.message.reasoning_content) {
      this.thought ??= this.place(element("details", "thought", element("summary"), element("div")));
      const busy = this.thoughtTime === undefined;
      this.thought.classList.toggle("thinking", busy);
      this.thought.firstChild.textContent = busy ? "Thinking" : `Thought for ${seconds(this.thoughtTime)}`;
      this.thought.lastChild.textContent = this.message.reasoning_content;
    }
    if (this.message.content) {
      this.words ??= this.place(element("div", "words"));
      this.words.replaceChildren(...formatted(this.message.content));
    }
    (this.message.tool_calls || []).forEach((call, index) => this.drawCall(call, index));
  }

  drawCall(call, index) {
    this.cards ??= [];
    const card = (this.cards[index] ??= this.place(
      element("details", "call",
        element("summary", "", element("span", "name"), element("span", "brief"), element("span", "state")),
        element("dl", "", element("dt", "", "arguments"), element("dd", "", element("pre")))),
    ));
    card.querySelector(".name").textContent = call.function.name;
    card.querySelector(".brief").textContent = call.function.arguments;
    card.querySelector(".state").textContent = call.result === undefined ? "called" : "done";
    card.querySelector("pre").textContent = call.function.arguments;
    if (call.result !== undefined && card.querySelectorAll("dt").length === 1) {
      card.querySelector("dl").append(element("dt", "", "result"), element("dd", "", element("pre", "", call.result)));
    }
  }

  place(node) {
    this.root.append(node);
    return node;
  }

  end(error) {
    this.root.classList.remove("busy");
    this.thoughtTime ??= performance.now() - this.begin;
    stayAtTheEnd(() => {
      this.draw();
      if (error) this.place(element("p", "error", error));
      if (this.usage) this.place(this.figures());
    });
  }

  figures() {
    const { completion_tokens, completion_tokens_details: details, prompt_tokens, prompt_tokens_details } = this.usage;
    const time = performance.now() - (this.first ?? this.begin);
    const drafted = details.accepted_prediction_tokens + details.rejected_prediction_tokens;
    const shown = [
      [completion_tokens, " tokens"],
      [(Math.max(0, completion_tokens - 1) / (time / 1000 || 1)).toFixed(1), " tokens/s"],
      [seconds((this.first ?? performance.now()) - this.begin), " to the first"],
      [`${Math.round((100 * prompt_tokens_details.cached_tokens) / prompt_tokens)} %`, ` of ${prompt_tokens} prompt tokens cached`],
    ];
    if (drafted) shown.push([`${Math.round((100 * details.accepted_prediction_tokens) / drafted)} %`, " of drafts accepted"]);
    if (this.finish === "length") shown.push(["cut", " at the most tokens"]);
    if (this.finish === "repetition") shown.push(["stopped", ": it repeated itself"]);
    return element("footer", "figures", ...shown.map(([value, words]) => element("span", "", element("b", "", String(value)), words)));
  }
}

// -- talking to the server

async function* events(response) {
  const decoder = new TextDecoder();
  let pending = "";
  for await (const bytes of response.body) {
    pending += decoder.decode(bytes, { stream: true });
    const parts = pending.split("\n\n");
    pending = parts.pop();
    for (const part of parts) {
      const data = part.startsWith("data: ") ? part.slice(6) : null;
      if (data && data !== "[DONE]") yield JSON.parse(data);
    }
  }
}

function request() {
  const system = $("system").value.trim();
  const tools = Object.entries(TOOLS).map(([name, { description, parameters }]) => ({ type: "function", function: { name, description, parameters } }));
  return {
    model,
    messages: system ? [{ role: "system", content: system }, ...messages] : messages,
    stream: true,
    stream_options: { include_usage: true },
    temperature: Number($("temperature").value),
    max_tokens: Number($("max-tokens").value) || undefined,
    thinking: { type: $("thinking").checked ? "enabled" : "disabled", clear_thinking: !$("keep").checked },
    ...($("tools").checked ? { tools } : {}),
  };
}

async function answerOnce() {
  const answer = new Answer();
  let error = null;
  try {
    const response = await fetch("v1/chat/completions", { method: "POST", headers: headers(), body: JSON.stringify(request()), signal: running.signal });
    if (!response.ok) throw new Error((await response.json()).error.message);
    for await (const chunk of events(response)) answer.take(chunk);
  } catch (caught) {
    error = running.signal.aborted ? "Stopped." : caught.message;
  }
  const calls = answer.message.tool_calls || [];
  const complete = !error && answer.finish === "tool_calls";
  if (!complete) delete answer.message.tool_calls; // a call that was cut must not be sent back
  messages.push({ ...answer.message, tool_calls: complete ? calls.map(({ id, type, function: f }) => ({ id, type, function: { ...f } })) : undefined });
  if (complete) calls.forEach((call) => { call.result = runTool(call); messages.push({ role: "tool", tool_call_id: call.id, content: call.result }); });
  answer.end(error);
  return complete;
}

function runTool({ function: { name, arguments: text } }) {
  try {
    return TOOLS[name] ? String(TOOLS[name].run(JSON.parse(text))) : `There is no tool called ${name}.`;
  } catch (error) {
    return `The tool failed: ${error.message}`;
  }
}

async function say(text) {
  $("welcome").hidden = true;
  messages.push({ role: "user", content: text });
  talk.append(element("article", "user", element("div", "words", text)));
  talk.scrollTop = talk.scrollHeight;
  running = new AbortController();
  setSending(true);
  for (let round = 0; round < MAX_ROUNDS && (await answerOnce()); round++);
  running = null;
  setSending(false);
}

// -- the controls

function setSending(busy) {
  $("send").textContent = busy ? "Stop" : "Send";
  $("send").classList.toggle("stop", busy);
}

function fit() {
  $("text").style.height = "auto";
  $("text").style.height = `${$("text").scrollHeight}px`;
}

$("composer").addEventListener("submit", (event) => {
  event.preventDefault();
  if (running) return running.abort();
  const text = $("text").value.trim();
  if (!text) return;
  $("text").value = "";
  fit();
  say(text);
});
$("text").addEventListener("input", fit);
$("text").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
    event.preventDefault();
    if (!running) $("composer").requestSubmit();
  }
});
$("fresh").addEventListener("click", () => {
  running?.abort();
  messages = [];
  talk.querySelectorAll("article").forEach((article) => article.remove());
  $("welcome").hidden = false;
  $("text").focus();
});
$("options-button").addEventListener("click", (event) => {
  $("options").hidden = !$("options").hidden;
  event.target.setAttribute("aria-expanded", String(!$("options").hidden));
});
$("theme").addEventListener("click", () => {
  const dark = document.documentElement.dataset.theme
    ? document.documentElement.dataset.theme === "dark"
    : matchMedia("(prefers-color-scheme: dark)").matches;
  document.documentElement.dataset.theme = dark ? "light" : "dark";
});
$("key").addEventListener("change", connect); // also by Enter
$("options").addEventListener("submit", (event) => event.preventDefault());

async function connect() {
  try {
    const response = await fetch("v1/models", { headers: headers() });
    if (response.status === 401) throw new Error("This server wants an API key: see Options.");
    const { data } = await response.json();
    model = data[0].id;
    $("model").textContent = model;
    $("live").textContent = `${data[0].max_model_len.toLocaleString("en")} tokens of context`;
    document.title = `${model} · chat`;
  } catch (error) {
    $("live").textContent = error.message;
  }
}

connect();
