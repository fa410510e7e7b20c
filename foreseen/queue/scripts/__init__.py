"""The queue's Lua scripts, each atomic: what they write of a job and of the queue agrees. One `.lua` file each.

    {fsj1}.job:ID      hash     a job: s state, head, q rows, r record of its end; n rows, d done; c created, b begun,
                                e ended (Unix ms); v version, one more with every change; t tickets that want it;
                                t:NONCE a ticket, c:NONCE when it was cancelled (Unix ms), h:NONCE its webhook, hs
                                the nonces of tickets with one; ps the batches it is in; is its idempotency keys;
                                m its message; o its worker, w how it runs (m beside others, a alone); x deaths of
                                workers that ran it, y of those that ran it alone, a attempts; sz bytes, tb of its
                                tickets; u fresh until, z kept until (Unix ms); same; by its caller, cs the other
                                callers with tickets of it, b:CALLER their bytes. A batch is such a hash, too: n
                                items, d ended, nb of them without an answer, r the list of them, kp how long its
                                result is kept (ms)
    {fsj1}.same:SAME   string   the job of a question
    {fsj1}.queue       stream   j the job, n its rows, b their bytes; group `workers`
    {fsj1}.later       zset     jobs that were put back → when they are due
    {fsj1}.open        zset     jobs that have not ended → when they were created
    {fsj1}.ends        zset     jobs that have ended → when they are forgotten
    {fsj1}.hooks       zset     tickets that have ended and have a webhook → when it is due (see `outbox.py`)
    {fsj1}.once:NAME   string   an idempotency key → fingerprint of its request ‖ job ‖ nonce; goes with its job
    {fsj1}.batches     zset     batches that have not ended → when they were created
    {fsj1}.callers     hash     b ‖ CALLER the bytes that a caller has, j ‖ CALLER its jobs that have not ended
    {fsj1}.blob:NAME   string   a file that OpenAI's clients have uploaded, or what a batch was created with
    {fsj1}.blobs       hash     those → their size, and when they are forgotten (Unix s)
    {fsj1}.dead        hash     dead letters: job → what happened
    {fsj1}.counts      hash     what metrics report: state:*, ended:*, submitted, redelivered, bytes, took:*
    {fsj1}.news        channel  jobs that have changed: their ids; of those that go on with a "+"

All keys lie in one slot of a Cluster, by their hash tag; scripts make the names of jobs' keys themselves. A job ends in
one place, `finish`, and only from queued or running. Times are the server's own.
"""

from __future__ import annotations

from foreseen.lua_scripts import lua_script
from foreseen.queue.records import JOB_BYTES, NAME_BYTES, NONCE_BYTES

BASE = "{fsj1}"
GROUP = "workers"
DURATIONS = (0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 1800.0, 7200.0)
"""Upper bounds of the histogram of how long jobs took, in seconds."""

_VALUES = {
    "NONCE_BYTES": str(NONCE_BYTES),
    "JOB_BYTES": str(JOB_BYTES),
    "NAME_BYTES": str(NAME_BYTES),
    "DURATIONS": ", ".join(f"{one:g}" for one in DURATIONS),
}
"""What stands for these names in the `.lua` files."""
_NAMES = (
    "submit", "batch", "close", "cancel", "retry", "keep",  # requesters and operators
    "claim", "begin", "beat", "finish", "back", "tick", "leave",  # workers
)  # fmt: skip


def _script(name: str) -> str:
    """A script behind what all of them share, `common.lua`."""
    text = lua_script("foreseen.queue", "common") + lua_script("foreseen.queue", name)
    for value, number in _VALUES.items():
        text = text.replace(value, number)
    return text


SCRIPTS = {name: _script(name) for name in _NAMES}
