(function () {
  "use strict";
  var root = document.documentElement;
  var figures = JSON.parse(document.getElementById("figures").textContent);
  var words = JSON.parse(document.getElementById("figure-words").textContent);
  var HALF = 318, WHOLE = 668; // print widths in CSS pixels on A4

  function translate(text) {
    return root.dataset.lang === "zh" && words[text] ? words[text] : text;
  }

  // colours by name become those of the palette in force; known English words are translated
  function resolve(value, key, style) {
    if (Array.isArray(value)) {
      return value.map(function (item) { return resolve(item, key, style); });
    }
    if (value && typeof value === "object") {
      var out = {};
      Object.keys(value).forEach(function (k) { out[k] = resolve(value[k], k, style); });
      return out;
    }
    if (typeof value === "string") {
      if (value[0] === "@") { return style.getPropertyValue("--" + value.slice(1)).trim(); }
      if (key === "text" || key === "name") { return translate(value); }
    }
    return value;
  }

  function draw(printing) {
    var style = getComputedStyle(root);
    var family = getComputedStyle(document.body).fontFamily;
    document.querySelectorAll(".plot").forEach(function (node) {
      var figure = resolve(figures[node.dataset.figure], "", style);
      var wide = node.parentNode.classList.contains("wide");
      figure.layout.font = { family: family, size: 12, color: style.getPropertyValue("--muted").trim() };
      figure.layout.paper_bgcolor = figure.layout.plot_bgcolor = "rgba(0,0,0,0)";
      figure.layout.hoverlabel = { font: { family: family } };
      figure.layout.autosize = !printing;
      figure.layout.width = printing ? (wide ? WHOLE : HALF) : undefined;
      Plotly.react(node, figure.data, figure.layout, { displayModeBar: false, responsive: !printing });
    });
  }

  document.getElementById("lang").addEventListener("click", function () {
    var chinese = root.dataset.lang !== "zh";
    root.dataset.lang = chinese ? "zh" : "en";
    root.lang = chinese ? "zh-CN" : "en";
    this.textContent = chinese ? "English" : "中文";
    this.lang = chinese ? "en" : "zh-CN";
    draw(false);
  });
  document.getElementById("print").addEventListener("click", function () { window.print(); });
  window.addEventListener("beforeprint", function () { root.classList.add("printing"); draw(true); });
  window.addEventListener("afterprint", function () { root.classList.remove("printing"); draw(false); });
  window.matchMedia("(prefers-color-scheme: dark)").addEventListener("change", function () { draw(false); });
  if (/[?#&]lang=zh/.test(location.href)) { document.getElementById("lang").click(); } else { draw(false); }
})();
