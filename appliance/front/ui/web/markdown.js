// Markdown of answers as nodes, never as a string of HTML. Links lead to http(s) only; pictures are shown as links.
import { html } from "./lib.js";

const INLINE = /(`+)([^`]|[^`][\s\S]*?[^`])\1(?!`)|\*\*([^*]+?)\*\*|\*([^*\s][^*]*?)\*|!?\[([^\]]*)\]\(([^)\s]+)[^)]*\)|(https?:\/\/[^\s<>"')\]]+)/;
const MAX_INLINE = 5000;

/** @param {string} text */
function inline(text) {
  const nodes = [];
  let rest = text;
  while (rest && nodes.length < MAX_INLINE) {
    const found = INLINE.exec(rest);
    if (!found) break;
    if (found.index) nodes.push(rest.slice(0, found.index));
    const [whole, , code, strong, weak, label, address, bare] = found;
    if (code !== undefined) nodes.push(html`<code>${code}</code>`);
    else if (strong !== undefined) nodes.push(html`<strong>${inline(strong)}</strong>`);
    else if (weak !== undefined) nodes.push(html`<em>${inline(weak)}</em>`);
    else nodes.push(link(label || address || bare, address ?? bare));
    rest = rest.slice(found.index + whole.length);
  }
  if (rest) nodes.push(rest);
  return nodes;
}

/** @param {string} label @param {string} address */
function link(label, address) {
  if (!/^https?:\/\//i.test(address)) return label;
  return html`<a href=${address} target="_blank" rel="noopener noreferrer nofollow">${label}</a>`;
}

/** Turn an answer into nodes. @param {{text: string}} props */
export function Markdown({ text }) {
  const blocks = [];
  const parts = text.split(/^```(.*)$/m); // outside, language, inside, …, outside
  for (let at = 0; at < parts.length; at += 1) {
    if (at % 4 === 1) continue; // the language
    if (at % 4 === 2) blocks.push(html`<pre class="code"><code>${parts[at].replace(/^\n|\n$/g, "")}</code></pre>`);
    else blocks.push(...paragraphs(at % 4 === 3 ? "" : parts[at]));
  }
  return html`<div>${blocks}</div>`;
}

/** @param {string} text */
function paragraphs(text) {
  return text
    .split(/\n{2,}/)
    .filter((block) => block.trim())
    .map((block) => {
      const lines = block.replace(/^\n+|\n+$/g, "").split("\n");
      if (lines.every((line) => /^\s*[-*+] /.test(line)))
        return html`<ul>${lines.map((line) => html`<li>${inline(line.replace(/^\s*[-*+] /, ""))}</li>`)}</ul>`;
      if (lines.every((line) => /^\s*\d+[.)] /.test(line)))
        return html`<ol>${lines.map((line) => html`<li>${inline(line.replace(/^\s*\d+[.)] /, ""))}</li>`)}</ol>`;
      const heading = /^#{1,6} (.*)$/.exec(lines[0]);
      if (heading && lines.length === 1) return html`<p><strong>${inline(heading[1])}</strong></p>`;
      return html`<p>${lines.map((line, number) => [number ? html`<br />` : null, ...inline(line)])}</p>`;
    });
}
