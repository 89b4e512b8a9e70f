// The clients of OpenAI, Anthropic, Ollama and Vercel's AI SDK: prints {name: [an answer, a stream, a call's arguments]}.
// Started with the server's address and the model's name beside a node_modules that has them.
import Anthropic from "@anthropic-ai/sdk";
import { createAnthropic } from "@ai-sdk/anthropic";
import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import { generateText, streamText, tool } from "ai";
import { Ollama } from "ollama";
import OpenAI from "openai";
import { z } from "zod";

const [url, model] = process.argv.slice(2), apiKey = "none is needed";
globalThis.AI_SDK_LOG_WARNINGS = false;
const call = '<tool_call>{"name": "get_weather", "arguments": {"city": "Bern"}}</tool_call>';
const parameters = { type: "object", properties: { city: { type: "string" } }, required: ["city"] };
const described = [{ type: "function", function: { name: "get_weather", description: "The weather.", parameters } }];
const asked = (content) => [{ role: "user", content }];
// The stand-in repeats the last question, with what stands before it in the same turn.
const talk = [...asked("hi"), { role: "assistant", content: "Hello" }, ...asked(call)];
const joined = async (pieces, textOf) => {
    let text = "";
    for await (const piece of await pieces) {
        text += textOf(piece) ?? "";
    }
    return text;
};

const openai = new OpenAI({ baseURL: `${url}/v1`, apiKey, maxRetries: 0 });
const anthropic = new Anthropic({ baseURL: url, apiKey, maxRetries: 0 });
const ollama = new Ollama({ host: url });
const ai = async (language) => [
    (await generateText({ model: language, prompt: "hello", maxRetries: 0 })).text,
    await joined(streamText({ model: language, prompt: "words=6", maxRetries: 0 }).textStream, (piece) => piece),
    (await generateText({
        model: language, messages: talk, maxRetries: 0,
        tools: { get_weather: tool({ inputSchema: z.object({ city: z.string() }) }) },
    })).toolCalls[0].input,
];
const clients = {
    "openai, chat": async () => {
        const create = (about) => openai.chat.completions.create({ model, ...about });
        const called = await create({ messages: talk, tools: described });
        return [
            (await create({ messages: asked("hello") })).choices[0].message.content,
            await joined(create({ messages: asked("words=6"), stream: true }), (piece) => piece.choices[0]?.delta?.content),
            JSON.parse(called.choices[0].message.tool_calls[0].function.arguments),
        ];
    },
    "openai, Responses": async () => {
        const create = (about) => openai.responses.create({ model, ...about });
        const tools = [{ type: "function", name: "get_weather", parameters, strict: false }];
        const called = (await create({ input: talk, tools })).output.find((item) => item.type === "function_call");
        return [
            (await create({ input: "hello" })).output_text,
            await joined(create({ input: "words=6", stream: true }), (piece) =>
                piece.type === "response.output_text.delta" ? piece.delta : ""),
            JSON.parse(called.arguments),
        ];
    },
    "anthropic": async () => {
        const about = { model, max_tokens: 200 }, tools = [{ name: "get_weather", input_schema: parameters }];
        const called = await anthropic.messages.stream({ ...about, messages: talk, tools }).finalMessage();
        return [
            (await anthropic.messages.create({ ...about, messages: asked("hello") })).content[0].text,
            await anthropic.messages.stream({ ...about, messages: asked("words=6") }).finalText(),
            called.content.find((block) => block.type === "tool_use").input,
        ];
    },
    "ollama": async () => [
        (await ollama.chat({ model, messages: asked("hello") })).message.content,
        await joined(ollama.generate({ model, prompt: "words=6", stream: true }), (piece) => piece.response),
        (await ollama.chat({ model, messages: talk, tools: described })).message.tool_calls[0].function.arguments,
    ],
    "AI SDK, OpenAI": () => ai(createOpenAICompatible({ name: "deck", baseURL: `${url}/v1`, apiKey })(model)),
    "AI SDK, Anthropic": () => ai(createAnthropic({ baseURL: `${url}/v1`, apiKey })(model)),
};
const found = {};
for (const [name, client] of Object.entries(clients)) {
    found[name] = await client().catch((error) => `${error.name}: ${error.message}`);
}
console.log(JSON.stringify(found));
