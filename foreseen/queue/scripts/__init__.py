"""A job's way through the queue as scripts, each of them atomic: what is written of a job and of the queue agrees.

    {fsj1}.job:ID      hash     a job: s state, head, q rows, r record of its end; n rows, d done; c created, b begun,
                                e ended (Unix ms); v version, one more with every change; t tickets that want it;
                                t:NONCE a ticket, c:NONCE when it was cancelled (Unix ms), h:NONCE its webhook, hs
                                the nonces of tickets with one; ps the batches it is in; is its idempotency keys;
                                m its message; o whose it is, w how it is aboard (m among many, a alone); x deaths of
                                workers with it aboard, y of such alone, a attempts; sz bytes, tb those of tickets;
                                u fresh until, z kept until (Unix ms); same; by its caller, cs the other callers
                                with tickets of it, b:CALLER their bytes. A batch is such a hash, too: n items, d
                                ended, nb of them without an answer, r the list of them, kp how long its result is
                                kept (ms)
    {fsj1}.same:SAME   string   the job of a question
    {fsj1}.queue       stream   j the job, n its rows, b their bytes; group `workers`
    {fsj1}.later       zset     jobs that were put back → when they are due
    {fsj1}.open        zset     jobs that have not ended → when they were created
    {fsj1}.ends        zset     jobs that have ended → when they are forgotten
    {fsj1}.hooks       zset     tickets that have ended and have a webhook → when it is due (see `outbox.py`)
    {fsj1}.once:NAME   string   an idempotency key → fingerprint of its request ‖ job ‖ nonce; goes with its job
    {fsj1}.batches     zset     batches that have not ended → when they were created
    {fsj1}.callers     hash     b ‖ CALLER the bytes that a caller has, j ‖ CALLER its jobs that have not ended
    {fsj1}.dead        hash     dead letters: job → what happened
    {fsj1}.counts      hash     what metrics tell: state:*, ended:*, submitted, redelivered, bytes, took:*
    {fsj1}.news        channel  jobs that have changed: their ids; of those that go on with a "+"

All keys lie in one slot of a Cluster, by their hash tag; scripts make the names of jobs' keys themselves. A job ends in
one place, `finish`, and only from queued or running. Times are the server's own.
"""

from __future__ import annotations

from foreseen.queue.scripts.common import COMMON
from foreseen.queue.scripts.requesters import BATCH, CANCEL, CLOSE, RETRY, SUBMIT
from foreseen.queue.scripts.workers import BACK, BEAT, BEGIN, CLAIM, FINISH, LEAVE, TICK

BASE = "{fsj1}"
GROUP = "workers"

SCRIPTS = {
    name: COMMON + body
    for name, body in {
        "submit": SUBMIT, "batch": BATCH, "close": CLOSE, "cancel": CANCEL, "retry": RETRY,
        "claim": CLAIM, "begin": BEGIN, "beat": BEAT, "finish": FINISH, "back": BACK, "tick": TICK, "leave": LEAVE,
    }.items()
}  # fmt: skip
