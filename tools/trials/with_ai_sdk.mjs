// Try the AI SDK of Vercel: `generateText` and `streamText` with `system`.

import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import { generateText, streamText } from "ai";

import { given, later, messages, trial } from "./common.mjs";

const service = createOpenAICompatible({ name: "service", baseURL: given.base_url });
const model = service("chat");
const system = given.system;

async function ask(options) {
  return (await generateText({ model, ...options })).text;
}

async function conversation() {
  const reply = await ask({ system, prompt: given.questions[0] });
  return [reply, await ask({ system, messages: later(reply).slice(1) })];
}

async function stream() {
  let text = "";
  for await (const piece of streamText({ model, system, prompt: given.questions[0] }).textStream) {
    text += piece;
  }
  return text;
}

await trial("plain", given.replies[0], () => ask({ messages: messages.slice(1) }));
await trial("system prompt", given.loud_replies, conversation);
await trial("stream", given.loud_replies[0], stream);
