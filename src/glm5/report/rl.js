// The rollout browser: a list to filter, and the chosen rollout token by token. Colours are classes and variables set
// once for each token, so that the switch between them only changes one attribute.

const HUES = 8;

function node(parent, tag, className, text) {
  const made = document.createElement(tag);
  if (className) made.className = className;
  if (text !== undefined) made.textContent = text;
  return parent.appendChild(made);
}

/** Line ends and other characters that show nothing, made visible where they are all a token has. */
const visible = (piece) => (piece.trim() ? piece : piece.replace(/\n/g, "↵\n").replace(/\t/g, "⇥"));

function drawTurn(parent, turn, number) {
  const section = node(parent, "section", "turn");
  const mean = turn.logprobs.reduce((a, b) => a + b, 0) / (turn.logprobs.length || 1);
  const about = [turn.engine, turn.finish, `${turn.tokens.length} tokens`, `mean ${mean.toFixed(2)} nats`].filter(Boolean);
  node(node(section, "h4", "", `Turn ${number} `), "small", "", about.join(" · "));
  if (turn.prompt) node(section, "pre", "prompt", turn.prompt);
  const output = node(section, "pre", "tokens");
  turn.tokens.forEach((piece, i) => {
    const token = node(output, "span", turn.trained[i] ? "trained" : "untrained", visible(piece));
    token.style.setProperty("--surprise", `${Math.min(100, -turn.logprobs[i] * 25).toFixed(0)}%`);
    token.style.setProperty("--hue", `var(--c${turn.versions[i] % HUES})`);
    token.title = `${turn.logprobs[i]} nats · version ${turn.versions[i]} · ${turn.trained[i] ? "trained" : "not trained"}`;
  });
  if (turn.left_out) node(section, "p", "note", `${turn.left_out.toLocaleString("en")} more tokens are left out.`);
}

function drawRollout(article, rollout) {
  const fragment = document.createDocumentFragment();
  const facts = [`version ${rollout.version}`, formatTime(rollout.seconds), rollout.environment, rollout.kind].filter(Boolean);
  node(node(fragment, "h3", "", rollout.failure ? "Failed " : `Reward ${formatNumber(rollout.reward)} `), "small", "", facts.join(" · "));
  const parts = Object.entries(rollout.parts).map(([name, value]) => `${name} ${formatNumber(value)}`);
  const words = [rollout.failure, parts.join(" · "), rollout.evidence].filter(Boolean);
  for (const text of words) node(fragment, "p", text === rollout.failure ? "warning" : "note", text);
  rollout.turns.forEach((turn, i) => drawTurn(fragment, turn, i + 1));
  article.replaceChildren(fragment);
  article.scrollTop = 0;
}

const OUTCOMES = {
  "": () => true,
  reward: (r) => !r.failure && r.reward > 0,
  none: (r) => !r.failure && r.reward <= 0,
  failed: (r) => Boolean(r.failure),
};
const score = (r) => (r.failure ? -Infinity : r.reward);
const ORDERS = {
  newest: (a, b) => b.version - a.version,
  oldest: (a, b) => a.version - b.version,
  best: (a, b) => score(b) - score(a) || 0,
  worst: (a, b) => score(a) - score(b) || 0,
};

for (const panel of document.querySelectorAll(".rollouts")) {
  const rollouts = stages[panel.dataset.stage].rollouts;
  const controls = panel.querySelector(".controls");
  const list = panel.querySelector(".list");
  const article = panel.querySelector(".rollout");
  const items = [...list.children];
  const choose = (item) => {
    for (const other of items) other.toggleAttribute("aria-current", other === item);
    if (item) drawRollout(article, rollouts[item.dataset.index]);
    else article.replaceChildren(document.createTextNode("No rollout shown here is like that."));
  };
  const filter = () => {
    const [environment, outcome, order] = ["environment", "outcome", "order"].map((name) => controls.querySelector(`[name=${name}]`).value);
    const of = (item) => rollouts[item.dataset.index];
    const fits = (r) => (!environment || r.environment === environment) && OUTCOMES[outcome](r);
    for (const item of items) item.hidden = !fits(of(item));
    items.sort((a, b) => ORDERS[order](of(a), of(b)));
    list.append(...items);
    const current = items.find((item) => item.hasAttribute("aria-current"));
    if (!current || current.hidden) choose(items.find((item) => !item.hidden));
  };
  const paint = () => (article.dataset.paint = controls.querySelector(".paint input:checked").value);
  controls.hidden = false;
  controls.addEventListener("change", (event) => (event.target.name.startsWith("paint") ? paint() : filter()));
  list.addEventListener("click", (event) => {
    const item = event.target.closest("li");
    if (item) choose(item);
  });
  paint();
  filter();
}
