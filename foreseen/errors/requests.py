"""Errors of a request, its connection and its route: the client can fix these."""

from __future__ import annotations

from foreseen.errors.base import ForeseenError


class BadRequest(ForeseenError):
    """The body or a header cannot be understood; the message names the field."""

    status, code = 400, "bad_request"
    fix = "Correct the request."


class BadInput(BadRequest):
    """A tensor does not match the model's signature."""

    code = "bad_input"
    fix = "Compare with `GET /v2/models/NAME`."


class WebhookRefused(BadRequest):
    """`Foreseen-Webhook` is malformed or names an address that the operator does not allow, or webhooks are off."""

    code = "webhook_refused"
    fix = "See [webhooks](webhooks.md)."


class Unauthorized(ForeseenError):
    """The request has no valid credential: a tenant's key, or on operators' routes an operator's key."""

    status, code = 401, "unauthorized"
    fix = "See [security](security.md). Operators send the content of `DATA/admin-token` as `Authorization: Bearer`."


class NotPermitted(ForeseenError):
    """A viewer's key was sent to a route that changes something."""

    status, code = 403, "not_permitted"
    fix = "Use an operator's key: see [security](security.md)."


class ModelNotAllowed(ForeseenError):
    """The tenant is not allowed to use this model."""

    status, code = 403, "model_not_allowed"
    fix = "Add the model to the tenant's `models` in the keys file."


class NotFound(ForeseenError):
    """There is no such route."""

    status, code = 404, "not_found"
    fix = "See [the routes](clients.md)."


class UnknownModel(ForeseenError):
    """There is no such model or version."""

    status, code = 404, "unknown_model"
    fix = "`GET /v2/models` lists them."

    def __init__(self, model: str, version: str | None = None) -> None:
        # Two example clients of Triton assert how it begins.
        at = f" version '{version}'" if version is not None else ""
        super().__init__(f"Request for unknown model: '{model}'{at} is not found", param="model")


class UnknownTarget(ForeseenError):
    """A purge names a model or digest that neither this proxy, the state store nor any artifact knows, or a tenant that
    is not in the keys file; or `--forget` names a worker that is not registered."""

    status, code = 404, "unknown_target"
    fix = "See `foreseen models list`. `--even-if-unknown` purges anyway."


class MethodNotAllowed(ForeseenError):
    """The route does not have this method. `Allow` lists its methods."""

    status, code = 405, "method_not_allowed"
    fix = "Use a method listed in `Allow`."


class TooLarge(ForeseenError):
    """A body, or an image in it, exceeds a limit: bytes, JSON elements or rows."""

    status, code = 413, "too_large"
    fix = "Send tensors in the binary form, split the batch, or raise `--body-bytes`."


class UnsupportedCoding(ForeseenError):
    """A `Content-Encoding` other than gzip and deflate."""

    status, code = 415, "unsupported_coding"
    fix = "Use gzip, deflate or none."


class BodyTimeout(ForeseenError):
    """The body did not arrive within `--body-seconds`."""

    status, code = 408, "body_timeout"
    fix = "Send faster, or raise the setting."


class HeadTimeout(ForeseenError):
    """The request's head did not arrive within `--head-seconds`."""

    status, code = 408, "head_timeout"
    fix = "Send faster, or raise the setting."


class HeadTooLarge(ForeseenError):
    """The request's head has more than 128 fields, a field longer than 8,190 bytes, or more than 64 KiB in all."""

    status, code = 431, "head_too_large"
    fix = "Send fewer or shorter header fields."


class RateLimited(ForeseenError):
    """An address sends more requests to one worker than `--rate` allows."""

    status, code = 429, "rate_limited"
    fix = "Retry after `Retry-After`. Behind a load balancer set `--forwarded-hops`, else callers share one address."


class QuotaExceeded(ForeseenError):
    """The tenant has used up a quota of the keys file: requests or rows per second, rows computed at a time, or model
    seconds per day. Hits count as requests and rows."""

    status, code = 429, "quota_exceeded"
    fix = "Retry after `Retry-After`, or raise the tenant's limit in the keys file. See `foreseen usage`."


class ExpectationFailed(ForeseenError):
    """An `Expect` header other than `100-continue`."""

    status, code = 417, "expectation_failed"
    fix = "Leave it out."


class VersionNotSupported(ForeseenError):
    """The request line has an HTTP version other than 1.1 and 1.0."""

    status, code = 505, "http_version"
    fix = "Use HTTP/1.1."


class Unsupported(ForeseenError):
    """A part of the protocol that Foreseen does not support."""

    status, code = 501, "unsupported"
    fix = "See [compatibility](compatibility.md)."
