// What every script context starts with: the clock and the random source of the job instead of the machine's,
// no way to block or to run later, and nothing shared that one script could change under another.
// Evaluated once per context; returns the helpers that only the engine sees.
(function (native, hidden) {
  "use strict";
  const { now, random, uuid, lookup, hl7Date, log, keep, restore } = native;

  const RealDate = Date;
  const Clock = function Date(...parts) {
    if (new.target === undefined) return new RealDate(now()).toString();
    return Reflect.construct(RealDate, parts.length === 0 ? [now()] : parts, new.target);
  };
  Clock.prototype = RealDate.prototype;
  Clock.now = () => now();
  Clock.parse = RealDate.parse;
  Clock.UTC = RealDate.UTC;
  Object.defineProperty(RealDate.prototype, "constructor", { value: Clock, writable: true, configurable: true });
  const replace = (name, value) =>
    Object.defineProperty(globalThis, name, { value, writable: true, configurable: true });
  replace("Date", Clock);
  Math.random = () => random();
  for (const name of [
    "Atomics", "SharedArrayBuffer", "WeakRef", "FinalizationRegistry", "performance", "queueMicrotask",
    "Promise", "eval", "gc", "print", "console", "navigator", "setTimeout", "setInterval",
  ]) delete globalThis[name];

  replace("lookup", (table, key, otherwise) => {
    const found = lookup(String(table), key === null || key === undefined ? "" : String(key));
    return found === undefined ? otherwise : found;
  });
  replace("uuid", () => uuid());
  replace("hl7Date", (date) => {
    if (date === undefined || date === null) return hl7Date(now());
    if (typeof date === "string") return hl7Date(date);
    return hl7Date(Number(date));
  });
  replace("log", (text) => { log(typeof text === "string" ? text : String(text)); });

  // A value sealed at rest: true, assignable, and of no use to a script.
  const opaque = () => { throw new TypeError("a secret cannot be read by scripts"); };
  const Secret = Object.create(Object.prototype, {
    toString: { value: opaque }, valueOf: { value: opaque }, [Symbol.toPrimitive]: { value: opaque },
  });
  const isSealed = (value) => {
    const keys = Object.keys(value);
    return keys.length === 1 && keys[0] === "$sealed" && typeof value.$sealed === "string";
  };
  const secret = (text) => {
    const value = Object.create(Secret);
    Object.defineProperty(value, "$sealed", { value: text, enumerable: true });
    return Object.freeze(value);
  };

  const put = (object, key, value) =>
    Object.defineProperty(object, key, { value, enumerable: true, writable: true, configurable: true });

  // The message type of a record goes with it, unseen: what is sent on is of the same type again.
  const typed = (value, type) => {
    if (type !== undefined && typeof value === "object" && value !== null && !Object.hasOwn(value, "$type"))
      Object.defineProperty(value, "$type", { value: type });
    return value;
  };
  const typeOf = (value) => {
    const found = Object.getOwnPropertyDescriptor(value, "$type");
    return found !== undefined && !found.enumerable && typeof found.value === "string" ? found.value : undefined;
  };

  // Values as JSON that comes back as it was: dates, records, HL7 messages and segments are tagged.
  const encode = (value, at) => {
    switch (typeof value) {
      case "string": case "boolean": return value;
      case "number": return Number.isFinite(value) ? value : null;
      case "bigint": throw new TypeError("a BigInt cannot be kept");
      case "object": break;
      default: return undefined;
    }
    if (value === null) return null;
    if (at > 200) throw new RangeError("a value to keep is nested too deep, or contains itself");
    if (value instanceof RealDate) return { $date: Number(value) };
    const kept = keep(value);
    if (kept !== undefined) return { $hl7: kept };
    if (Array.isArray(value)) {
      const out = [];
      for (let i = 0; i < value.length; i++) {
        const item = encode(value[i], at + 1);
        out.push(item === undefined ? null : item);
      }
      return out;
    }
    const out = {};
    const keys = Object.keys(value);
    for (const key of keys) {
      const item = encode(value[key], at + 1);
      if (item !== undefined) put(out, key, item);
    }
    const type = typeOf(value);
    if (type !== undefined) return { $record: { type, fields: out } };
    if (keys.length === 1 && ["$date", "$hl7", "$plain", "$record"].includes(keys[0])) return { $plain: out };
    return out;
  };
  const decode = (value) => {
    if (typeof value !== "object" || value === null) return value;
    if (Array.isArray(value)) return value.map(decode);
    const keys = Object.keys(value);
    if (keys.length === 1) {
      if (keys[0] === "$date") return new RealDate(value.$date === null ? NaN : value.$date);
      if (keys[0] === "$hl7") return restore(value.$hl7);
      if (keys[0] === "$plain") return fields(value.$plain);
      if (keys[0] === "$record") return typed(fields(value.$record.fields), value.$record.type);
      if (isSealed(value)) return secret(value.$sealed);
    }
    return fields(value);
  };
  const fields = (value) => {
    const out = {};
    for (const key of Object.keys(value)) put(out, key, decode(value[key]));
    return out;
  };

  // A record that arrived: plain data, its secrets opaque.
  const record = (value) => {
    if (typeof value !== "object" || value === null) return value;
    if (Array.isArray(value)) return value.map(record);
    if (isSealed(value)) return secret(value.$sealed);
    const out = {};
    for (const key of Object.keys(value)) put(out, key, record(value[key]));
    return out;
  };
  const freeze = (value) => {
    if (typeof value !== "object" || value === null || Object.isFrozen(value)) return value;
    Object.freeze(value);
    for (const key of Object.keys(value)) freeze(value[key]);
    return value;
  };

  const parse = JSON.parse;
  const stringify = JSON.stringify;
  const helpers = {
    record: (json, type) => typed(record(parse(json)), type),
    frozen: (json, type) => freeze(typed(record(parse(json)), type)),
    type: (value) => (typeof value === "object" && value !== null ? typeOf(value) : undefined),
    plain: (value) => stringify(value),
    encode: (value) => stringify(encode(value, 0)),
    decode: (json) => decode(parse(json)),
    time: (value) => (value instanceof RealDate ? Number(value) : undefined),
    merge: (target, path, value) => {
      let object = target;
      for (let i = 0; i < path.length - 1; i++) {
        const next = Object.hasOwn(object, path[i]) ? object[path[i]] : undefined;
        if (typeof next !== "object" || next === null) put(object, path[i], {});
        object = object[path[i]];
      }
      const last = path[path.length - 1];
      if (Array.isArray(object) || !Object.hasOwn(object, last)) put(object, last, value);
      else object[last] = value;
    },
  };

  // Fields that scripts override on their own objects although a prototype has them too (error.name = …):
  // on a frozen prototype a plain assignment would be refused, so these become accessors.
  const overridable = (prototype, names) => {
    for (const name of names) {
      const found = Object.getOwnPropertyDescriptor(prototype, name);
      if (found === undefined || !("value" in found)) continue;
      Object.defineProperty(prototype, name, {
        get: () => found.value,
        set(value) {
          if (this === prototype) throw new TypeError("shared objects cannot be changed");
          put(this, name, value);
        },
        enumerable: false,
        configurable: false,
      });
    }
  };
  overridable(Object.prototype, ["constructor", "hasOwnProperty", "isPrototypeOf", "toLocaleString", "toString", "valueOf"]);
  for (const type of [Error, EvalError, RangeError, ReferenceError, SyntaxError, TypeError, URIError, AggregateError])
    overridable(type.prototype, ["constructor", "name", "message", "toString"]);

  const seen = new Set();
  const harden = (value) => {
    const todo = [value];
    while (todo.length > 0) {
      const object = todo.pop();
      if ((typeof object !== "object" && typeof object !== "function") || object === null || seen.has(object)) continue;
      seen.add(object);
      for (const key of Reflect.ownKeys(object)) {
        const found = Object.getOwnPropertyDescriptor(object, key);
        todo.push(found.value, found.get, found.set);
      }
      todo.push(Object.getPrototypeOf(object));
      Object.freeze(object);
    }
  };
  harden([
    Secret, hidden,
    Object.getPrototypeOf(function* () {}), Object.getPrototypeOf(async function () {}),
    Object.getPrototypeOf(async function* () {}), Object.getPrototypeOf([][Symbol.iterator]()),
    Object.getPrototypeOf(""[Symbol.iterator]()), Object.getPrototypeOf("".matchAll(/x/g)),
    Object.getPrototypeOf(new Map().entries()), Object.getPrototypeOf(new Set().entries()),
  ]);
  harden(globalThis);
  return helpers;
})
