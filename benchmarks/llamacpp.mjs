// Greedy continuations by llama.cpp: node llamacpp.mjs MODEL.gguf PROMPTS.json COUNT FLASH -> one line of JSON.
// Copied beside its node_modules before it runs, because that is where Node looks for packages.
import fs from "fs";
import {getLlama} from "node-llama-cpp";

const [, , modelPath, promptsPath, count, flash] = process.argv;
const llama = await getLlama({gpu: false, build: "never", logLevel: "error"});
const model = await llama.loadModel({modelPath});
const results = [];
for (const prompt of JSON.parse(fs.readFileSync(promptsPath))) {
    const context = await model.createContext({
        contextSize: prompt.length + Number(count) + 8, sequences: 1, threads: 1, batchSize: 512, flashAttention: flash === "1",
        experimentalKvCacheKeyType: "F32", experimentalKvCacheValueType: "F32",
    });
    const ids = [];
    const began = performance.now();
    let first = 0;
    for await (const token of context.getSequence().evaluate(prompt, {temperature: 0})) {
        first ||= performance.now();
        if (ids.push(Number(token)) >= Number(count)) break;
    }
    results.push({ids, prefill_seconds: (first - began) / 1000, decode_seconds: (performance.now() - first) / 1000});
    await context.dispose();
}
console.log(JSON.stringify(results));
process.exit(0);
