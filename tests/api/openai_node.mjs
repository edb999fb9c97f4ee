// The official openai package for Node against a running server (TERRACE_URL).
import assert from "node:assert/strict";
import OpenAI from "openai";

const url = process.env.TERRACE_URL;
const model = process.env.TERRACE_MODEL_ID;
const client = new OpenAI({ baseURL: `${url}/v1`, apiKey: "none", maxRetries: 0, timeout: 120000 });
const messages = [{ role: "user", content: "Say hello in one short sentence." }];
const chat = (more = {}, options = {}) =>
  client.chat.completions.create({ model, messages, temperature: 0, max_tokens: 16, ...more }, options);

async function running() {
  const text = await (await fetch(`${url}/metrics`)).text();
  return [...text.matchAll(/^vllm:num_requests_(?:running|waiting)\{.*\} (\d+)$/gm)].reduce(
    (sum, m) => sum + Number(m[1]), 0);
}

async function idle() {
  const until = Date.now() + 60000;
  while (await running()) {
    assert(Date.now() < until);
    await new Promise((done) => setTimeout(done, 2));
  }
}

const tests = {
  async models() {
    const list = await client.models.list();
    assert.equal(list.data[0].id, model);
    assert.equal((await client.models.retrieve(model)).object, "model");
  },

  async chat() {
    const r = await chat();
    assert.equal(r.object, "chat.completion");
    assert.equal(r.choices[0].message.role, "assistant");
    assert(r.choices[0].message.content.length > 0);
    assert.equal(r.usage.total_tokens, r.usage.prompt_tokens + r.usage.completion_tokens);
  },

  async stream() {
    await chat(); // the prompt is cached from here on: the same path, the same text
    const whole = await chat();
    let text = "", usage = null, finish = null;
    const stream = await chat({ stream: true, stream_options: { include_usage: true } });
    for await (const chunk of stream) {
      text += chunk.choices[0]?.delta?.content ?? "";
      finish = chunk.choices[0]?.finish_reason ?? finish;
      usage = chunk.usage ?? usage;
    }
    assert.equal(text, whole.choices[0].message.content);
    assert.equal(finish, whole.choices[0].finish_reason);
    assert.equal(usage.completion_tokens, whole.usage.completion_tokens);
  },

  // the helper insists on role, index and finish chunks being where they belong
  async streamHelper() {
    const stream = client.chat.completions.stream({ model, messages, temperature: 0, max_tokens: 16 });
    const final = await stream.finalChatCompletion();
    assert.equal(final.choices[0].message.content, (await chat()).choices[0].message.content);
  },

  async choicesAndStop() {
    const r = await chat({ n: 2, stop: ["!", "."] });
    assert.deepEqual(r.choices.map((c) => c.index), [0, 1]);
    for (const c of r.choices) assert(!/[!.]/.test(c.message.content));
  },

  async logprobs() {
    const r = await chat({ logprobs: true, top_logprobs: 2 });
    const bytes = r.choices[0].logprobs.content.flatMap((t) => t.bytes);
    assert.equal(Buffer.from(bytes).toString(), r.choices[0].message.content);
  },

  async completions() {
    const complete = () => client.completions.create(
      { model, prompt: "The capital of France is", max_tokens: 8, temperature: 0 });
    await complete();
    const r = await complete();
    assert.match(r.choices[0].text, /Paris/);
    let text = "";
    for await (const c of await client.completions.create(
      { model, prompt: "The capital of France is", max_tokens: 8, temperature: 0, stream: true }))
      text += c.choices[0].text;
    assert.equal(text, r.choices[0].text);
  },

  async errors() {
    await assert.rejects(chat({ temperature: 3 }), (e) =>
      e instanceof OpenAI.BadRequestError && e.param === "temperature" &&
      e.type === "invalid_request_error");
    await assert.rejects(chat({ model: "no-such" }), (e) =>
      e instanceof OpenAI.NotFoundError && e.code === "model_not_found");
    await assert.rejects(chat({ stream: true, response_format: { type: "json_object" } }), (e) =>
      e instanceof OpenAI.BadRequestError && e.param === "response_format");
  },

  async abortStream() {
    await idle();
    const stream = await chat({ stream: true, max_tokens: 4000, ignore_eos: true });
    let n = 0;
    for await (const _ of stream) if (++n === 5) break; // leaving the loop aborts the request
    await idle();
  },

  async abortWaiting() {
    await idle();
    const stop = new AbortController();
    const answer = chat({ max_tokens: 4000, ignore_eos: true }, { signal: stop.signal });
    const gone = assert.rejects(answer, OpenAI.APIUserAbortError);
    while ((await running()) === 0) await new Promise((done) => setTimeout(done, 2));
    stop.abort();
    await gone;
    await idle();
  },
};

let passed = 0, failed = 0;
for (const [name, test] of Object.entries(tests)) {
  try {
    await test();
    passed++;
  } catch (e) {
    failed++;
    console.log(`--- ${name}\n${e.stack}`);
  }
}
console.log(`${passed} passed, ${failed} failed`);
process.exit(failed ? 1 : 0);
