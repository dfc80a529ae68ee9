// What moves on the page: charts, the switch of their horizontal axis, the sample slider, light and dark.

document.documentElement.classList.add("js");
const stages = JSON.parse(document.getElementById("data").textContent);
const plots = [];

for (const stage of Object.values(stages)) {
  const { axes } = stage;
  stage.plots = [];
  stage.point = (step) => stage.plots.forEach((plot) => plot.point(step));
  stage.describe = (step) => {
    const [tokens, time] = [interpolate(axes.steps, axes.tokens, step), interpolate(axes.steps, axes.time, step)];
    return `step ${formats.steps(step)} · ${formatNumber(Math.round(tokens))} tokens · ${formatTime(time)}`;
  };
}

for (const figure of document.querySelectorAll(".chart")) {
  const stage = stages[figure.dataset.stage];
  const plot = new Plot(figure, stage.charts[figure.dataset.chart], stage);
  stage.plots.push(plot);
  plots.push(plot);
}

const axisSwitch = document.querySelector(".axis");
axisSwitch.hidden = !plots.length;
axisSwitch.addEventListener("change", (event) => {
  for (const plot of plots) {
    plot.axis = event.target.value;
    plot.draw();
  }
});

for (const samples of document.querySelectorAll(".samples:has(.slider)")) {
  const slider = samples.querySelector("input");
  const show = () => {
    for (const list of samples.querySelectorAll(".moments")) {
      [...list.children].forEach((moment, i) => moment.classList.toggle("now", i === Number(slider.value)));
    }
    samples.querySelector(".slider output").textContent = samples.querySelector(".moments .now").dataset.label;
  };
  samples.querySelector(".slider").hidden = false;
  slider.addEventListener("input", show);
  show();
}

const theme = document.querySelector(".theme");
theme.hidden = false;
theme.addEventListener("click", () => {
  const root = document.documentElement;
  const dark = root.dataset.theme ? root.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
  root.dataset.theme = dark ? "light" : "dark";
});
