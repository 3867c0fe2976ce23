"use strict";
(() => {
  const root = document.getElementById("ha-beat");
  const byId = (id) => document.getElementById(id);
  const INTERVAL = 1000;
  const TIMEOUT = 5000;
  // The server waits for the leader's reply.
  const REQUEST_TIMEOUT = 30000;

  const duration = (ms) => {
    const s = Math.max(0, ms) / 1000;
    if (s < 1) return `${Math.round(ms)} ms`;
    if (s < 120) return `${s.toFixed(s < 10 ? 1 : 0)} s`;
    if (s < 7200) return `${Math.round(s / 60)} min`;
    return s < 172800 ? `${Math.round(s / 3600)} h` : `${Math.round(s / 86400)} days`;
  };
  const ago = (ms) => (ms < 3000 ? "now" : `${duration(ms)} ago`);
  const full = (ms) => new Date(ms).toLocaleString([], { dateStyle: "full", timeStyle: "long" });
  // With the date unless it is today's.
  const clock = (ms) => {
    const at = new Date(ms);
    const sameDay = at.toDateString() === new Date().toDateString();
    return at.toLocaleString([], sameDay ? { timeStyle: "medium" } : { dateStyle: "short", timeStyle: "medium" });
  };

  const cell = (value, title) => {
    const td = document.createElement("td");
    if (value instanceof Node) td.append(value);
    else td.textContent = value;
    if (title) td.title = title;
    return td;
  };
  const name = (value, title) => {
    const td = cell(value, title);
    td.className = "ha-name";
    return td;
  };
  const number = (value) => {
    const td = cell(value);
    td.className = "ha-number";
    return td;
  };
  const tag = (text, kind) => {
    const span = document.createElement("span");
    span.className = `ha-tag ${kind}`;
    span.textContent = text;
    return span;
  };
  const KINDS = { enqueued: "ha-good", skipped: "ha-warn", uncertain: "ha-bad", leader: "ha-good" };
  const verdict = (o) => {
    const td = cell(tag(o.verdict, KINDS[o.verdict] || ""), o.detail);
    const more = (o.kind === "occurrence" ? "" : ` (${o.kind})`) + (o.count > 1 ? ` ${o.count} occurrences` : "") + (o.reason ? ` (${o.reason})` : "");
    td.append(more);
    return td;
  };
  const fill = (id, rows, empty) => {
    const body = byId(id);
    const lines = rows.map(({ cells, className }) => {
      const tr = document.createElement("tr");
      if (className) tr.className = className;
      tr.append(...cells);
      return tr;
    });
    if (!lines.length) {
      const tr = document.createElement("tr");
      const td = cell(empty);
      td.className = "ha-empty";
      td.colSpan = byId(id).closest("table").querySelectorAll("th").length;
      tr.append(td);
      lines.push(tr);
    }
    body.replaceChildren(...lines);
  };
  const link = (text, href) => {
    const a = document.createElement("a");
    a.textContent = text;
    a.href = href;
    return a;
  };
  const taskLink = (line) =>
    root.dataset.taskUrl && /^\d+$/.test(line.entry) ? link(line.name, `${root.dataset.taskUrl}${line.entry}/change/`) : line.name;
  const health = (replica) => {
    if (replica.not_ready.length) {
      const span = document.createElement("span");
      span.className = "ha-bad";
      span.textContent = replica.not_ready.map((problem) => problem.why).join("; ");
      return span;
    }
    return /^https?:/.test(replica.url) ? link(replica.url, replica.url) : replica.http || "ready";
  };

  const showError = (text) => {
    byId("ha-error").hidden = !text;
    if (byId("ha-error").textContent !== text) byId("ha-error").textContent = text;
    // The state is unknown now.
    if (text) byId("ha-dot").className = "ha-dot";
  };
  const request = async (url, timeout, options) => {
    try {
      return await fetch(url, { ...options, signal: AbortSignal.timeout(timeout) });
    } catch (error) {
      throw error.name === "TimeoutError" ? new Error("the server does not answer") : error;
    }
  };
  const refusal = (answer) => {
    if (answer.redirected) return "your session has ended; log in again";
    return answer.status === 403 ? "you are not allowed to do this" : `the server answered ${answer.status}`;
  };
  const showState = (text) => {
    // Screen readers announce only a change.
    if (byId("ha-state").dataset.text !== text) {
      byId("ha-state").dataset.text = text;
      byId("ha-state").textContent = text;
    }
  };

  const show = (data) => {
    showError(data.error);
    if (data.error) return;
    const { now_ms: now, lease, paused } = data;
    let state = `${data.cluster}: ${data.leader ? `${data.leader} leads` : "no leader"}`;
    if (data.entries !== null) state += `; ${data.entries} ${data.entries === 1 ? "entry" : "entries"}`;
    if (paused) state += `; paused by ${paused.by || "unknown"}${paused.reason ? `: ${paused.reason}` : ""}`;
    showState(state);
    byId("ha-dot").className = `ha-dot ${!data.leader ? "ha-bad" : paused ? "ha-warn" : "ha-good"}`;
    byId("ha-updated").textContent = `Updated at ${clock(now)}, your time.`;
    byId("ha-lease").textContent = !lease
      ? "There is no lease."
      : lease.state === "held"
        ? `Epoch ${lease.epoch}, held for ${duration(now - lease.since_ms)}, renewed ${duration(now - (lease.renewed_ms || lease.since_ms))} ago; it expires ${duration(lease.ttl_ms)} after a renewal.`
        : `The lease was released: ${lease.why || "no reason given"}.`;
    if (byId("ha-control")) {
      for (const id of ["ha-pause", "ha-reason-label"]) byId(id).hidden = Boolean(paused);
      byId("ha-resume").hidden = !paused;
    }
    fill("ha-replicas", data.members.map((r) => ({
      className: r.role === "leader" ? "ha-leader" : "",
      cells: [
        cell(r.id), cell(tag(r.role, KINDS[r.role] || "")), cell(`${r.host} (${r.pid})`), cell(r.version),
        number(duration(now - r.since_ms)), number(ago(now - r.seen_ms)),
        number(`${r.clock_offset_ms >= 0 ? "+" : ""}${r.clock_offset_ms} ms`),
        cell(health(r)),
      ],
    })), "No replicas");
    fill("ha-recent", data.recent.map((o) => ({
      cells: [
        name(taskLink(o)), cell(clock(o.at_ms), `${full(o.at_ms)} ${o.task_id}`), verdict(o),
        number(o.verdict === "enqueued" && o.kind === "occurrence" ? duration(o.lateness_s * 1000) : ""),
        cell(o.asked_by ? `${o.by}, for ${o.asked_by}` : o.by),
      ],
    })), "No occurrences yet");
    fill("ha-upcoming", data.upcoming.map((u) => ({
      cells: [
        name(taskLink(u), u.task), cell(clock(u.at_ms), full(u.at_ms)),
        number(u.at_ms > now ? duration(u.at_ms - now) : "now"),
      ],
    })), "No occurrences are scheduled");
    fill("ha-terms", [...data.terms].reverse().map((t) => {
      const [why, endWhy] = [cell(t.why), cell(t.end_why)];
      why.className = endWhy.className = "ha-why";
      const end = t.ended_ms === null ? cell("now") : cell(clock(t.ended_ms), full(t.ended_ms));
      return { cells: [cell(t.by), number(String(t.epoch)), cell(clock(t.began_ms), full(t.began_ms)), why, end, endWhy] };
    }), "No terms recorded");
  };

  const refresh = async () => {
    try {
      const answer = await request(root.dataset.url, TIMEOUT, { headers: { Accept: "application/json" }, cache: "no-store" });
      if (!answer.ok || answer.redirected) throw new Error(refusal(answer));
      show(await answer.json());
    } catch (error) {
      showError(`This page is out of date: ${error.message}`);
    }
  };
  const loop = async () => {
    if (!document.hidden) await refresh();
    setTimeout(loop, INTERVAL);
  };

  const form = byId("ha-control");
  if (form) {
    form.addEventListener("submit", async (event) => {
      event.preventDefault();
      const button = event.submitter;
      if (!button || (button.dataset.confirm && !window.confirm(button.dataset.confirm))) return;
      const body = new FormData(form);
      body.set("action", button.value);
      for (const each of form.querySelectorAll("button")) each.disabled = true;
      byId("ha-answer").textContent = "…";
      try {
        const answer = await request(root.dataset.controlUrl, REQUEST_TIMEOUT, { method: "POST", body });
        const isJson = !answer.redirected && answer.headers.get("Content-Type") === "application/json";
        byId("ha-answer").textContent = isJson ? (await answer.json()).line : refusal(answer);
        if (answer.ok) byId("ha-reason").value = "";
      } catch (error) {
        byId("ha-answer").textContent = error.message;
      }
      for (const each of form.querySelectorAll("button")) each.disabled = false;
      await refresh();
    });
  }

  show(JSON.parse(byId("ha-data").textContent));
  setTimeout(loop, INTERVAL);
})();
