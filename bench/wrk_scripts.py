"""The requests of `bench.hit`, as Lua for wrk: one body for ever, or another one each time."""

from __future__ import annotations

import json
from pathlib import Path

JSON, BINARY = "application/json", "application/octet-stream"
FRESH_ID = """local n = 0
request = function() n = n + 1
  return wrk.format(nil, nil, nil, '{"id":"' .. n .. '",' .. wrk.body:sub(2)) end"""
FRESH_USER = """local n = 10000000 + os.time() % 50000 * 100000
request = function() n = n + 1
  return wrk.format(nil, nil, nil, '{"user":"' .. n .. '",' .. wrk.body:sub(2)) end"""
CREDENTIAL = 'wrk.headers["Authorization"] = "Bearer sk-bench"'
FRESH_TRACE = """local n = os.time() % 50000 * 100000
request = function() n = n + 1
  wrk.headers["traceparent"] = string.format("00-%032x-%016x-00", n, n)
  return wrk.format() end"""
KNOWN_ROWS = """local rows = {{}}
for line in io.lines("{file}") do rows[#rows + 1] = line end
math.randomseed(os.time())
local at = math.random(#rows)
local head, tail = wrk.body:match("^(.-)ROWS(.*)$")
local t = {{}}
request = function()
  for i = 1, {count} do
    at = {count} == 1 and at % #rows + 1 or math.random(#rows)
    t[i] = rows[at]
  end
  return wrk.format(nil, nil, nil, head .. table.concat(t, ",") .. tail) end"""
"""Known rows in a body that was never seen: of several any of a pool, of one the next of more than a turn asks for."""
OTHER_CASE = """math.randomseed(os.time())
local texts = {{ {texts} }}
request = function()
  local text = texts[math.random(#texts)]:gsub("%l", function(c) return math.random(2) == 1 and c:upper() or c end)
  return wrk.format(nil, nil, nil,
    '{{"inputs":[{{"name":"text","shape":[1],"datatype":"BYTES","data":["' .. text .. '"]}}]}}') end"""
"""A known text as nobody has written it before: to this tokenizer, upper case is the same."""
THREE = """math.randomseed(os.time())
local texts = {{ {texts} }}
request = function()
  local t = {{}}
  for i = 1, 3 do t[i] = texts[math.random(#texts)] end
  return wrk.format(nil, nil, nil, '{{"input":["' .. table.concat(t, '","') ..
    '"],"model":"minilm","encoding_format":"base64"}}') end"""
PACED = """math.randomseed(1)
delay = function() return math.random(0, {most}) end"""
"""Milliseconds that a connection rests before its next request."""
RESTING = 256
SHUFFLED = """local head, rows = wrk.body:sub(1, {head}), {{}}
for i = 0, {pool} - 1 do rows[i + 1] = wrk.body:sub({head} + 128 * i + 1, {head} + 128 * (i + 1)) end
math.randomseed(1)
local n, t = 0, {{}}
request = function()
  for i = 1, 64 do t[i] = rows[math.random({pool})] end
  for i = 1, {fresh} do n = n + 1
    t[i] = string.char(n % 256, math.floor(n / 256) % 256, math.floor(n / 65536) % 256) .. t[i]:sub(4) end
  return wrk.format(nil, nil, nil, head .. table.concat(t)) end"""
"""64 rows of a pool in an order that never comes again, `fresh` of them unheard of."""
PAIRS = """local texts = {{ {texts} }}
math.randomseed(1)
request = function()
  local one, two = texts[math.random(#texts)], texts[math.random(#texts)]
  return wrk.format(nil, nil, nil,
    '{{"inputs":[{{"name":"text","shape":[2],"datatype":"BYTES","data":["' .. one .. '","' .. two .. '"]}}]}}') end"""


def script(folder: Path, name: str, body: bytes, *lines: str, length: int | None = None) -> Path:
    """A wrk script that posts one body for ever, or what its Lua makes of it. `length`: of a binary one's JSON."""
    (folder / name).write_bytes(body)
    path = folder / f"{name}.lua"
    head = [f'wrk.headers["Content-Type"] = "{JSON if length is None else BINARY}"']
    if length is not None:
        head.append(f'wrk.headers["Inference-Header-Content-Length"] = "{length}"')
    read = f'local file = io.open("{folder / name}", "rb")\nwrk.body = file:read("*a")\nfile:close()'
    path.write_text("\n".join(['wrk.method = "POST"', *head, read, *lines]) + "\n")
    return path


def binary(name: str, shape: list[int], datatype: str, raw: bytes) -> tuple[bytes, int]:
    """A request of one binary tensor that wants its outputs binary; the length of its JSON part."""
    tensor = {"name": name, "shape": shape, "datatype": datatype, "parameters": {"binary_data_size": len(raw)}}
    head = json.dumps({"inputs": [tensor], "parameters": {"binary_data_output": True}}).encode()
    return head + raw, len(head)
