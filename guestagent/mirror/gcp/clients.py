"""GCP: google-cloud-compute's clients, from what gcloud and Google's own library are configured by."""

import os
import re
from typing import Any

from guestagent.errors import ConfigError, HostError
from guestagent.mirror.gcp.errors import said
from guestagent.mirror.gcp.read import Place
from guestagent.mirror.spec import Spec

SCOPE = "https://www.googleapis.com/auth/compute"
ENDPOINT_VARIABLE, REGION_VARIABLE = "CLOUDSDK_API_ENDPOINT_OVERRIDES_COMPUTE", "CLOUDSDK_COMPUTE_REGION"
"""As gcloud has them: an endpoint of Private Service Connect, and the region where --region is not given."""
CREDENTIALS_VARIABLE = "GOOGLE_APPLICATION_CREDENTIALS"
_PLACE = re.compile(r"[a-z0-9:.-]+")
"""A project or a region; a project may have a domain."""


def open_clients(spec: Spec) -> tuple[dict[str, Any], Place]:
    """By the names of policy.CALLS, with Application Default Credentials; and the project and region to look at.

    Raises ModuleNotFoundError, ConfigError, HostError.
    """
    import google.auth
    from google.api_core.client_options import ClientOptions
    from google.auth.exceptions import GoogleAuthError
    from google.cloud import compute_v1

    from guestagent.mirror.metadata import own_region

    try:
        credentials, project = google.auth.default(scopes=[SCOPE])
    except GoogleAuthError as error:
        if path := os.environ.get(CREDENTIALS_VARIABLE):
            raise HostError(f"{CREDENTIALS_VARIABLE}={path}: {said(error)}") from error
        raise HostError(
            "no Google credentials: run `gcloud auth application-default login`, set GOOGLE_APPLICATION_CREDENTIALS, "
            "or give the VM a service account"
        ) from error
    if not project:
        raise ConfigError("no project: set GOOGLE_CLOUD_PROJECT, or run `gcloud config set project`")
    region = spec.region or region_of(spec.target) or os.environ.get(REGION_VARIABLE) or own_region("gcp")
    if not region:
        raise ConfigError(f"no region: give --region, or set {REGION_VARIABLE}")
    for what, name in (("project", project), ("region", region)):
        if not _PLACE.fullmatch(name):
            raise ConfigError(f"{what}: {name!r} is no name of one")
    endpoint = os.environ.get(ENDPOINT_VARIABLE, "").partition("/compute/")[0].rstrip("/")
    common = {
        "transport": "rest",
        "credentials": credentials,
        "client_options": ClientOptions(api_endpoint=endpoint or None),
    }
    clients = {
        "packet_mirrorings": compute_v1.PacketMirroringsClient(**common),
        "region_operations": compute_v1.RegionOperationsClient(**common),
        "instances": compute_v1.InstancesClient(**common),
        "forwarding_rules": compute_v1.ForwardingRulesClient(**common),
        "projects": compute_v1.ProjectsClient(**common),
    }
    return clients, Place(project, region)


def region_of(target: str) -> str:
    """Of a short URL; empty for a mere name."""
    parts = target.split("/")
    return parts[3] if len(parts) == 6 else ""
