// Try OpenAI's client for Node.js.

import OpenAI from "openai";

import { given, later, messages, trial } from "./common.mjs";

const client = new OpenAI({ baseURL: given.base_url, apiKey: "none" });

async function ask(messages) {
  const answer = await client.chat.completions.create({ model: "chat", messages });
  return answer.choices[0].message.content;
}

async function conversation() {
  const reply = await ask(messages);
  return [reply, await ask(later(reply))];
}

async function continuations() {
  const body = { model: "names", prompt: given.beginnings, temperature: 0 };
  return (await client.completions.create(body)).choices.map((choice) => choice.text);
}

async function models() {
  return (await client.models.list()).data.map((model) => model.id);
}

const stream = () => client.chat.completions.stream({ model: "chat", messages }).finalContent();

await trial("plain", given.replies[0], () => ask(messages.slice(1)));
await trial("system prompt", given.loud_replies, conversation);
await trial("stream", given.loud_replies[0], stream);
await trial("list or batch", given.endings, continuations);
await trial("models", ["names", "chat"], models);
