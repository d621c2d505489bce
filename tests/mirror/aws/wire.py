"""EC2 and ELB on the wire: requests and answers by botocore's own service models, and the errors of the API."""

import functools
from typing import Any
from xml.sax.saxutils import escape

import botocore.session
from botocore.model import OperationModel, ServiceModel, Shape

Body = dict[str, Any]
SERVICES = {"2016-11-15": "ec2", "2015-12-01": "elbv2"}


class Refusal(Exception):
    """An error of the API."""

    def __init__(self, code: str, message: str = "as the test says", status: int = 400) -> None:
        super().__init__(code)
        self.code, self.message, self.status = code, message, status


class Lost(Exception):
    """The call was done and its answer never arrives: what a crash of the caller looks like from here."""


class Decoder:
    """A form body as the parameters of one operation; what the model does not know is refused as EC2 does."""

    def __init__(self, form: dict[str, str], service: str) -> None:
        self.form, self.is_ec2 = form, service == "ec2"
        self.used: set[str] = set()

    def decode(self, operation: OperationModel) -> Body:
        body = self._value(operation.input_shape, "") if operation.input_shape else {}
        unknown = sorted(set(self.form) - self.used - {"Action", "Version"})
        if unknown:
            raise Refusal("UnknownParameter", f"The parameter {unknown[0]} is not recognized")
        return body or {}

    def _value(self, shape: Shape, key: str) -> Any:
        match shape.type_name:
            case "structure":
                return self._structure(shape, key)
            case "list":
                return self._list(shape, key)
        if key not in self.form:
            return None
        self.used.add(key)
        return scalar(shape, key, self.form[key])

    def _structure(self, shape: Shape, key: str) -> Body | None:
        found = {}
        for name, member in shape.members.items():
            value = self._value(member, f"{key}.{self._key(name, member)}".lstrip("."))
            if value is not None:
                found[name] = value
        if key and not found:
            return None
        for name in shape.metadata.get("required", ()):
            if name not in found:
                raise Refusal("MissingParameter", f"The request must contain the parameter {name}")
        return found

    def _key(self, name: str, member: Shape) -> str:
        if not self.is_ec2:
            return str(member.serialization.get("name", name))
        if "queryName" in member.serialization:
            return str(member.serialization["queryName"])
        text = str(member.serialization.get("name", name))
        return text[0].upper() + text[1:]

    def _list(self, shape: Shape, key: str) -> list[Any] | None:
        base = key if self.is_ec2 else f"{key}.member"
        found: list[Any] = []
        while any(
            one == f"{base}.{len(found) + 1}" or one.startswith(f"{base}.{len(found) + 1}.") for one in self.form
        ):
            found.append(self._value(shape.member, f"{base}.{len(found) + 1}"))
        return found or None


def scalar(shape: Shape, key: str, text: str) -> Any:
    """A typed value in its bounds, or InvalidParameterValue."""
    wrong = Refusal("InvalidParameterValue", f"Value ({text}) for parameter {key} is invalid.")
    if shape.type_name == "boolean":
        if text not in ("true", "false"):
            raise wrong
        return text == "true"
    if shape.type_name in ("integer", "long"):
        if not text.lstrip("-").isdecimal():
            raise wrong
        value = int(text)
        if not shape.metadata.get("min", value) <= value <= shape.metadata.get("max", value):
            raise wrong
        return value
    if shape.metadata.get("enum") and text not in shape.metadata["enum"]:
        raise wrong
    return text


def encode(shape: Shape, value: Any, name: str, *, is_ec2: bool) -> str:
    """One value as XML, by the output shape; what the shape does not know fails here, in the fake."""
    if shape.type_name == "structure":
        unknown = set(value) - set(shape.members)
        assert not unknown, f"the fake answers with {unknown}, which {shape.name} has not"
        inner = "".join(
            encode(member, value[key], str(member.serialization.get("name", key)), is_ec2=is_ec2)
            for key, member in shape.members.items()
            if value.get(key) is not None
        )
    elif shape.type_name == "list":
        inner = "".join(encode(shape.member, one, "item" if is_ec2 else "member", is_ec2=is_ec2) for one in value)
    else:
        inner = str(value).lower() if isinstance(value, bool) else escape(str(value))
    return f"<{name}>{inner}</{name}>"


@functools.cache
def models() -> dict[str, ServiceModel]:
    """Read once: EC2's is 6 MB."""
    return {name: botocore.session.get_session().get_service_model(name) for name in SERVICES.values()}


def error_xml(error: Refusal, service: str) -> str:
    """As each protocol has it."""
    inner = f"<Error><Code>{error.code}</Code><Message>{escape(error.message)}</Message></Error>"
    if service == "ec2":
        return f"<Response><Errors>{inner}</Errors><RequestID>r</RequestID></Response>"
    return f"<ErrorResponse>{inner}<RequestId>r</RequestId></ErrorResponse>"
