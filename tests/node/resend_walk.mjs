// Calls every method of Resend's package once and prints, by name, what came back.
// RESEND_BASE_URL and RESEND_API_KEY say where; the argument is JSON: {letter, scheduled, later, wrong, ours}, where ours are the
// methods that the server has.

import { Resend } from "resend";

const { letter, scheduled, later, wrong, ours } = JSON.parse(process.argv[2]);
const resend = new Resend();
const told = {};

// A payload that any method can read, and that stands for an id where it is put into a path.
const ANYTHING = {
  id: "any",
  email: "any@example.net",
  domainId: "any",
  emailId: "any",
  contactId: "any",
  segmentId: "any",
  topics: [],
  toString: () => "any",
};

function methodsOf(part) {
  return Object.getOwnPropertyNames(Object.getPrototypeOf(part)).filter((name) => name !== "constructor");
}

function partsOf(part, path = []) {
  const inner = Object.entries(part).filter(([, one]) => one?.resend === resend);
  return [[path, part], ...inner.flatMap(([name, one]) => partsOf(one, [...path, name]))];
}

// What the server has.
const once = { idempotencyKey: `node-${Date.now()}` };
const permissive = { batchValidation: "permissive" };
const sent = await resend.emails.send(letter);
told["emails.send"] = sent;
told["emails.send again"] = [await resend.emails.send(letter, once), await resend.emails.send(letter, once)];
told["emails.send other"] = await resend.emails.send({ ...letter, text: "other" }, once);
told["emails.send later"] = await resend.emails.send(scheduled);
told["emails.send wrong"] = await resend.emails.send(wrong);
told["emails.create"] = await resend.emails.create(letter);
told["emails.get"] = await resend.emails.get(sent.data?.id);
told["emails.list"] = await resend.emails.list();
told["emails.list page"] = await resend.emails.list({ limit: 2, after: told["emails.list"].data?.data[0].id });
told["emails.update"] = await resend.emails.update({ id: told["emails.send later"].data?.id, scheduledAt: later });
told["emails.cancel"] = await resend.emails.cancel(told["emails.send later"].data?.id);
told["emails.cancel again"] = await resend.emails.cancel(told["emails.send later"].data?.id);
told["emails.update canceled"] = await resend.emails.update({ id: told["emails.send later"].data?.id, scheduledAt: later });
told["emails.cancel nothing"] = await resend.emails.cancel("00000000-0000-0000-0000-000000000000");
told["emails.get nothing"] = await resend.emails.get("00000000-0000-0000-0000-000000000000");
told["batch.send"] = await resend.batch.send([letter, letter]);
told["batch.send wrong"] = await resend.batch.send([letter, wrong, letter]);
told["batch.send permissive"] = await resend.batch.send([letter, wrong, letter], permissive);
told["batch.send permissive good"] = await resend.batch.send([letter], permissive);
told["batch.create"] = await resend.batch.create([letter]);
told["no key"] = await new Resend("re_wrong").emails.send(letter);

// What it has not; those two ask nobody, or are a part of another.
const done = new Set([...ours, "webhooks.verify", "templates.performCreate"]);
const others = {};
for (const [path, part] of partsOf(resend)) {
  // The verbs that all others are made of.
  if (!path.length) continue;
  for (const method of methodsOf(part)) {
    const name = [...path, method].join(".");
    if (done.has(name)) continue;
    const { data, error } = await part[method](ANYTHING, ANYTHING);
    others[name] = { data, error };
  }
}

console.log(JSON.stringify({ told, others }));
