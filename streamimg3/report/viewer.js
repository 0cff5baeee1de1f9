(function () {
  "use strict";
  var facts = JSON.parse(document.getElementById("facts").textContent);
  var canvas = document.getElementById("view"), context = canvas.getContext("2d");
  var picture = document.getElementById("picture"), segments = document.getElementById("segments");
  var showSegments = document.getElementById("show-segments"), showSources = document.getElementById("show-sources");
  var where = document.getElementById("where"), told = document.getElementById("source");
  var sources = facts.sources || [], view = { x: 0, y: 0, scale: 1 }, fitted = 1, chosen = null, pointers = new Map();

  if (!segments.getAttribute("src")) showSegments.disabled = true;
  if (!sources.length) showSources.disabled = true;

  function size() {
    var width = canvas.clientWidth, height = Math.round(Math.min(width * facts.height / facts.width, window.innerHeight * 0.75));
    var ratio = window.devicePixelRatio || 1;
    canvas.style.height = Math.max(height, 220) + "px";
    canvas.width = Math.round(width * ratio);
    canvas.height = Math.round(Math.max(height, 220) * ratio);
    fitted = Math.min(canvas.width / facts.width, canvas.height / facts.height);
  }
  function fit() {
    view.scale = fitted;
    view.x = (canvas.width - facts.width * fitted) / 2;
    view.y = (canvas.height - facts.height * fitted) / 2;
    draw();
  }
  function zoom(by, x, y) {
    var scale = Math.min(Math.max(view.scale * by, fitted * 0.5), 40 * (window.devicePixelRatio || 1));
    by = scale / view.scale;
    view.x = x - (x - view.x) * by;
    view.y = y - (y - view.y) * by;
    view.scale = scale;
    draw();
  }
  function draw() {
    context.setTransform(1, 0, 0, 1, 0, 0);
    context.fillStyle = "#0b1020";
    context.fillRect(0, 0, canvas.width, canvas.height);
    context.setTransform(view.scale, 0, 0, view.scale, view.x, view.y);
    context.imageSmoothingEnabled = view.scale < 2;
    context.drawImage(picture, 0, 0, facts.width, facts.height);
    if (showSegments.checked) {
      context.imageSmoothingEnabled = false;
      context.drawImage(segments, 0, 0, facts.width, facts.height);
    }
    if (showSources.checked) drawSources();
    drawCompass();
    canvas.dataset.scale = view.scale.toFixed(4);
    canvas.dataset.sources = showSources.checked ? String(sources.length) : "0";
    canvas.dataset.segments = showSegments.checked ? "1" : "0";
  }
  function drawSources() {
    var ratio = window.devicePixelRatio || 1;
    context.setTransform(1, 0, 0, 1, 0, 0);
    var shown = sources.filter(function (s) {
      var x = view.x + s[1] * view.scale, y = view.y + s[2] * view.scale, r = s[3] * view.scale;
      return x >= -r && y >= -r && x <= canvas.width + r && y <= canvas.height + r;
    });
    var crowded = shown.length > canvas.width * canvas.height / (900 * ratio * ratio);
    context.lineWidth = (crowded ? 0.7 : 1.2) * ratio;
    shown.forEach(function (s) {
      var x = view.x + s[1] * view.scale, y = view.y + s[2] * view.scale;
      var r = s === chosen ? Math.max(s[3] * view.scale, 5 * ratio) : Math.max(s[3] * view.scale, (crowded ? 1.2 : 3) * ratio);
      context.strokeStyle = s === chosen ? "#facc15" : "rgba(96,165,250,0.85)";
      context.beginPath();
      context.arc(x, y, r, 0, 2 * Math.PI);
      context.stroke();
    });
  }
  function drawCompass() {
    var ratio = window.devicePixelRatio || 1, arm = 26 * ratio, x = canvas.width - 44 * ratio, y = canvas.height - 44 * ratio;
    var north = facts.north * Math.PI / 180;
    context.setTransform(1, 0, 0, 1, 0, 0);
    context.strokeStyle = context.fillStyle = "#fff";
    context.lineWidth = 1.5 * ratio;
    context.font = 11 * ratio + "px sans-serif";
    context.textAlign = "center";
    context.textBaseline = "middle";
    [["N", north], ["E", north + Math.PI / 2]].forEach(function (part) {
      var dx = -Math.sin(part[1]), dy = -Math.cos(part[1]);
      context.beginPath();
      context.moveTo(x, y);
      context.lineTo(x + arm * dx, y + arm * dy);
      context.stroke();
      context.fillText(part[0], x + 1.35 * arm * dx, y + 1.35 * arm * dy);
    });
    var wanted = canvas.width / 6 / view.scale * facts.scale, unit = wanted >= 60 ? 60 : 1;
    var power = Math.pow(10, Math.floor(Math.log10(wanted / unit)));
    var length = unit * [5, 2, 1].map(function (m) { return m * power; }).filter(function (v) { return v <= wanted / unit; })[0];
    var bar = length / facts.scale * view.scale, left = 16 * ratio, bottom = canvas.height - 18 * ratio;
    context.fillRect(left, bottom, bar, 2 * ratio);
    context.textAlign = "left";
    context.fillText(Number((length / unit).toPrecision(2)) + (unit === 60 ? "′" : "″"), left, bottom - 9 * ratio);
  }
  function place(event) {
    var box = canvas.getBoundingClientRect(), ratio = canvas.width / box.width;
    return { x: (event.clientX - box.left) * ratio, y: (event.clientY - box.top) * ratio };
  }
  function sky(x, y) {
    var dx = (x - view.x) / view.scale - 0.5 - facts.at[0];
    var dy = facts.height - ((y - view.y) / view.scale) - 0.5 - facts.at[1];
    var dec = facts.middle[1] + dx * facts.right[1] + dy * facts.up[1];
    var east = (dx * facts.right[0] + dy * facts.up[0]) / Math.cos(facts.middle[1] * Math.PI / 180);
    return [facts.middle[0] + east, dec];
  }
  function choose(at) {
    var x = (at.x - view.x) / view.scale, y = (at.y - view.y) / view.scale, best = Infinity;
    chosen = null;
    sources.forEach(function (s) {
      var d = Math.hypot(s[1] - x, s[2] - y), reach = Math.max(s[3], 8 * (window.devicePixelRatio || 1) / view.scale);
      if (d < best && d <= reach) { best = d; chosen = s; }
    });
    if (chosen && showSources.checked) {
      told.hidden = false;
      told.textContent = "source " + chosen[0] + (chosen[4] === null ? "" : " · magnitude " + chosen[4]) +
        (chosen[5] === null ? "" : " · RA " + chosen[5] + "° Dec " + chosen[6] + "°") +
        " · pixel (x, y) " + (chosen[1] * facts.factor - 0.5).toFixed(1) + ", " +
        ((facts.height - chosen[2]) * facts.factor - 0.5).toFixed(1);
    } else {
      told.hidden = true;
      chosen = null;
    }
    draw();
  }

  document.querySelectorAll("#viewer [data-do]").forEach(function (button) {
    button.addEventListener("click", function () {
      if (button.dataset.do === "fit") fit();
      else zoom(button.dataset.do === "in" ? 1.6 : 1 / 1.6, canvas.width / 2, canvas.height / 2);
    });
  });
  showSegments.addEventListener("change", draw);
  showSources.addEventListener("change", draw);
  canvas.addEventListener("wheel", function (event) {
    if (!event.ctrlKey && document.activeElement !== canvas) return;
    event.preventDefault();
    var at = place(event);
    zoom(Math.exp(-event.deltaY / 400), at.x, at.y);
  }, { passive: false });
  canvas.addEventListener("pointerdown", function (event) {
    var at = place(event);
    canvas.setPointerCapture(event.pointerId);
    pointers.set(event.pointerId, { x: at.x, y: at.y, startX: at.x, startY: at.y });
  });
  canvas.addEventListener("pointermove", function (event) {
    var at = place(event), last = pointers.get(event.pointerId), position = sky(at.x, at.y);
    where.textContent = "RA " + position[0].toFixed(5) + "° Dec " + position[1].toFixed(5) + "°";
    if (!last) return;
    if (pointers.size === 1) {
      view.x += at.x - last.x;
      view.y += at.y - last.y;
      draw();
    } else {
      var other = Array.from(pointers.entries()).filter(function (p) { return p[0] !== event.pointerId; })[0][1];
      var before = Math.hypot(last.x - other.x, last.y - other.y), after = Math.hypot(at.x - other.x, at.y - other.y);
      if (before > 0) zoom(after / before, (at.x + other.x) / 2, (at.y + other.y) / 2);
    }
    last.x = at.x;
    last.y = at.y;
  });
  function release(event) {
    var last = pointers.get(event.pointerId);
    pointers.delete(event.pointerId);
    if (last && event.type === "pointerup" && Math.hypot(last.x - last.startX, last.y - last.startY) < 5) choose(last);
  }
  canvas.addEventListener("pointerup", release);
  canvas.addEventListener("pointercancel", release);
  window.addEventListener("resize", function () { size(); fit(); });
  Promise.all([picture, segments].map(function (image) {
    return image.getAttribute("src") ? image.decode() : null;
  })).then(function () { size(); fit(); canvas.dataset.ready = "1"; });
})();
