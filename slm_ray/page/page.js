"use strict";
// What every part of the page needs: text that shows each of its characters, and the words in which two texts differ.
// Text from data enters the page as text nodes only.

// Characters that show nothing or turn the direction of those after them: they would make two answers look alike. A
// selector or joiner within a picture (an emoji) is no such thing.
const UNSEEN = /(?<!\p{Extended_Pictographic})\ufe0f|(?<!\p{Extended_Pictographic}\ufe0f?)\u200d|(?![ \t\n\ufe0f\u200d])[\p{Cc}\p{Cf}\p{Cs}\p{Co}\p{Cn}\p{Z}\p{Default_Ignorable_Code_Point}\u2800]/gu;
const UNSEEN_AT_MOST = 500;
const WORDS_AT_MOST = 2000; // of a text that is compared word by word

function make(tag, className, text) {
  const node = document.createElement(tag);
  if (className) node.className = className;
  if (text !== undefined && text !== null) fill(node, text);
  return node;
}

// The text as it is, with a code before each character that cannot be seen.
function fill(node, text) {
  const whole = String(text);
  let from = 0, marked = 0;
  for (const found of whole.matchAll(UNSEEN)) {
    if (marked === UNSEEN_AT_MOST) {
      node.append(whole.slice(from, found.index), make("span", "tag", "more characters that cannot be seen"));
      from = found.index;
      break;
    }
    const box = document.createElement("bdo");
    box.className = "unseen";
    box.dir = "ltr";
    box.dataset.code = code(found[0]);
    box.textContent = found[0];
    node.append(whole.slice(from, found.index), box);
    from = found.index + found[0].length;
    marked += 1;
  }
  node.append(whole.slice(from));
}

function code(sign) {
  return `U+${sign.codePointAt(0).toString(16).toUpperCase().padStart(4, "0")}`;
}

// An answer beside the expected text as [kind, text] parts: 0 in both, 1 in the answer alone, -1 in the expected one alone.
// The longest common sequence of words and signs; null where they share none or are too long for it.
function differences(expected, answer) {
  const words = (text) => text.match(/[\p{L}\p{N}_]+|\s+|[^]/gu) || [];
  let left = words(expected), right = words(answer);
  let start = 0, end = 0;
  while (start < Math.min(left.length, right.length) && left[start] === right[start]) start += 1;
  while (end < Math.min(left.length, right.length) - start && left[left.length - 1 - end] === right[right.length - 1 - end]) end += 1;
  const before = right.slice(0, start).join(""), after = right.slice(right.length - end).join("");
  left = left.slice(start, left.length - end);
  right = right.slice(start, right.length - end);
  if (left.length > WORDS_AT_MOST || right.length > WORDS_AT_MOST) return null;
  const width = right.length + 1, longest = new Uint16Array((left.length + 1) * width);
  for (let i = left.length - 1; i >= 0; i -= 1) {
    for (let j = right.length - 1; j >= 0; j -= 1) {
      longest[i * width + j] = left[i] === right[j] ? longest[(i + 1) * width + j + 1] + 1 : Math.max(longest[(i + 1) * width + j], longest[i * width + j + 1]);
    }
  }
  const parts = before ? [[0, before]] : [];
  const add = (kind, text) => {
    const last = parts.at(-1);
    if (last && last[0] === kind) last[1] += text;
    else parts.push([kind, text]);
  };
  let i = 0, j = 0;
  while (i < left.length || j < right.length) {
    if (i < left.length && j < right.length && left[i] === right[j]) { add(0, right[j]); i += 1; j += 1; }
    else if (i < left.length && (j === right.length || longest[(i + 1) * width + j] >= longest[i * width + j + 1])) { add(-1, left[i]); i += 1; }
    else { add(1, right[j]); j += 1; }
  }
  if (after) add(0, after);
  return parts.some(([kind, text]) => kind === 0 && text.trim()) ? parts : null;
}

function seconds(value) {
  if (value === null || value === undefined) return "–";
  return value < 1 ? `${Math.round(value * 1000)} ms` : `${value.toFixed(2)} s`;
}

// A share as everywhere on the page.
function percent(value) {
  return value === null || value === undefined ? "–" : `${(100 * value).toFixed(1)} %`;
}

