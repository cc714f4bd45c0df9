"""What ``/openapi.json`` says of the routes whose bodies are read by hand."""

from typing import Any

_LABEL = {
    "type": "object",
    "required": ["class_id", "label", "score"],
    "properties": {
        "class_id": {"type": "integer"},
        "label": {"type": "string"},
        "score": {"type": "number", "description": "between 0 and 1"},
    },
}
_ERROR = {
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["code", "message"],
            "properties": {"code": {"type": "string"}, "message": {"type": "string"}},
        }
    },
}
_NUMBERS = {"type": "array", "items": {"type": "number"}}
_MATCH = {
    "type": "object",
    "required": ["label", "image", "score"],
    "properties": {
        "label": {"type": "string"},
        "image": {"type": "string", "description": "its path in the gallery"},
        "score": {"type": "number", "description": "similarity"},
    },
}
_OBJECT = {
    "type": "object",
    "required": ["bbox", "label", "score", "matches", "detection"],
    "properties": {
        "bbox": {
            "type": "array",
            "items": {"type": "integer"},
            "description": "x1, y1, x2, y2 in pixels; x2 and y2 are outside",
        },
        "label": {"type": "string"},
        "score": {"type": "number", "description": "similarity of the best match"},
        "matches": {"type": "array", "items": _MATCH},
        "detection": {
            "nullable": True,
            "type": "object",
            "properties": {"bbox": _NUMBERS, "score": {"type": "number"}},
            "description": "the detector's own box; null for the whole image",
        },
    },
}
# What an image's result holds, by the kind of the service.
_RESULT = {
    "classification": {
        "type": "object",
        "required": ["labels"],
        "properties": {"labels": {"type": "array", "items": _LABEL}},
    },
    "recognition": {
        "type": "object",
        "required": ["objects", "index_version", "timings_ms"],
        "properties": {
            "objects": {"type": "array", "items": _OBJECT},
            "index_version": {"type": "integer"},
            "timings_ms": {"type": "object", "additionalProperties": {"type": "number"}},
        },
    },
}


def _results(kind: str) -> dict[str, Any]:
    each = {"oneOf": [_RESULT[kind], _ERROR]}
    return {
        "type": "object",
        "required": ["results"],
        "properties": {
            "results": {"type": "array", "description": "one for each image, in order", "items": each}
        },
    }


_STRINGS = {"type": "array", "items": {"type": "string"}}
_PIPELINE_REQUEST = {
    "type": "object",
    "properties": {
        "key": _STRINGS,
        "value": {**_STRINGS, "description": "for each key the base64 of an image file"},
        "tensors": {"type": "array", "items": {"type": "object"}},
        "logid": {"oneOf": [{"type": "integer"}, {"type": "string"}]},
        "clientip": {"type": "string"},
    },
}
_PIPELINE_RESPONSE = {
    "type": "object",
    "required": ["err_no", "err_msg", "key", "value", "tensors"],
    "properties": {
        "err_no": {"type": "integer", "description": "0 for success"},
        "err_msg": {"type": "string"},
        "key": _STRINGS,
        "value": _STRINGS,
        "tensors": {"type": "array", "items": {"type": "object"}},
    },
}


def _json(schema: dict[str, Any], description: str) -> dict[str, Any]:
    return {"description": description, "content": {"application/json": {"schema": schema}}}


_SLOW = _json(_ERROR, "the body did not come in time")
_FAULT = _json(_ERROR, "a fault of the server, which its log tells of")
_GALLERY_ERRORS: dict[int | str, dict[str, Any]] = {
    400: _json(_ERROR, "the request is malformed, or an image cannot be read"),
    403: _json(_ERROR, "the server was started without --gallery-writes"),
    404: _json(_ERROR, "there is no such entry"),
    408: _SLOW,
    413: _json(_ERROR, "too many bytes or images"),
    500: _FAULT,
    503: _json(_ERROR, "the server is stopping, or mending its engine"),
}


def ready_route() -> dict[str, Any]:
    """Arguments of the decorator of ``/v2/health/ready``."""
    ready = {"type": "object", "required": ["ready"], "properties": {"ready": {"type": "boolean"}}}
    return {
        "summary": "Would a request be answered?",
        "responses": {200: _json(ready, "yes"), 503: _json(ready, "no; it may be later")},
    }


def images_route(kind: str) -> dict[str, Any]:
    """Arguments of the ``/v1/{kind}`` route's decorator."""
    file = {"type": "string", "format": "binary"}
    json_body = {
        "type": "object",
        "required": ["images"],
        "properties": {"images": {**_STRINGS, "minItems": 1, "description": "base64, or data: URLs of it"}},
    }
    form = {
        "type": "object",
        "required": ["images"],
        "properties": {"images": {"type": "array", "minItems": 1, "items": file}},
    }
    results = _results(kind)
    either = {"oneOf": [results, _ERROR]}
    return {
        "summary": f"{kind.capitalize()} of one image or several",
        "responses": {
            200: _json(results, "at least one image has an answer"),
            400: _json(either, "no image could be read, or the request is malformed"),
            408: _SLOW,
            413: _json(either, "too many bytes, images or pixels"),
            500: _json(either, "a fault of the server, which its log tells of"),
            503: _json(
                _ERROR, "the queue is full, or the server is stopping; Retry-After says when to come back"
            ),
            504: _json(_ERROR, "the deadline passed"),
        },
        "openapi_extra": {
            "parameters": [
                {
                    "name": "top_k",
                    "in": "query",
                    "required": False,
                    "schema": {"type": "integer", "minimum": 1},
                    "description": "how many labels, or gallery entries for each object",
                }
            ],
            "requestBody": {
                "required": True,
                "content": {
                    "image/*": {"schema": file},
                    "application/octet-stream": {"schema": file},
                    "multipart/form-data": {"schema": form},
                    "application/json": {"schema": json_body},
                },
            },
        },
    }


def gallery_append() -> dict[str, Any]:
    """Arguments of the decorator of ``POST /v1/gallery``."""
    entry = {
        "type": "object",
        "required": ["image", "label"],
        "properties": {"image": {"type": "string", "description": "base64"}, "label": {"type": "string"}},
    }
    form = {
        "type": "object",
        "required": ["images", "label"],
        "properties": {
            "images": {"type": "array", "items": {"type": "string", "format": "binary"}},
            "label": {**_STRINGS, "description": "one for all images, or one for each"},
        },
    }
    json_body = {"type": "object", "properties": {"images": {"type": "array", "items": entry}}}
    return {
        "summary": "Add images with their labels",
        "responses": {200: _json({"type": "object"}, "what changed"), **_GALLERY_ERRORS},
        "openapi_extra": {
            "requestBody": {
                "required": True,
                "content": {
                    "multipart/form-data": {"schema": form},
                    "application/json": {"schema": json_body},
                },
            }
        },
    }


def gallery_remove() -> dict[str, Any]:
    """Arguments of the decorator of ``DELETE /v1/gallery``."""
    strings = {"type": "array", "items": {"type": "string"}}
    return {
        "summary": "Remove entries by label, image or id",
        "responses": {200: _json({"type": "object"}, "what changed"), **_GALLERY_ERRORS},
        "openapi_extra": {
            "parameters": [
                {"name": name, "in": "query", "required": False, "schema": strings}
                for name in ("label", "image", "id")
            ]
        },
    }


def pipeline_route() -> dict[str, Any]:
    """Arguments of the ``/{name}/{method}`` route's decorator."""
    error = {
        "type": "object",
        "properties": {
            "error": {"type": "string"},
            "code": {"type": "integer"},
            "message": {"type": "string"},
            "details": {"type": "array", "items": {"type": "object"}},
        },
    }
    return {
        "summary": "Paddle Serving's pipeline protocol",
        "responses": {
            200: _json(_PIPELINE_RESPONSE, "an answer, or an error told by err_no"),
            400: _json(error, "no JSON, or a field of the wrong type"),
            408: _json(error, "the body did not come in time"),
            413: _json(error, "a body over the limit"),
            500: _json(error, "a fault of the server, which its log tells of"),
            503: _json(error, "the server is stopping"),
        },
        "openapi_extra": {
            "parameters": [
                {"name": name, "in": "path", "required": True, "schema": {"type": "string", "minLength": 1}}
                for name in ("name", "method")
            ],
            "requestBody": {"content": {"application/json": {"schema": _PIPELINE_REQUEST}}},
        },
    }
