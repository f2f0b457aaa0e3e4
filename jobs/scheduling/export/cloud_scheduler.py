"""Google Cloud Scheduler, which starts a Cloud Run job: a shell script of two gcloud calls."""

from __future__ import annotations

import shlex
from collections.abc import Mapping

from jobs.scheduling.export.call import Calling
from pipeline.errors import JobError

_SCRIPT = """\
#!/bin/sh
# A Cloud Run job that runs what is due, and a Cloud Scheduler job that starts it. The service account needs
# run.jobs.run on the job, and to read the input and write the output; nothing else.
set -eu
: "${{PROJECT:?}}" "${{REGION:?}}" "${{SERVICE_ACCOUNT:?}}"

gcloud run jobs create {name} --project "$PROJECT" --region "$REGION" --image {image} \\
  --service-account "$SERVICE_ACCOUNT" --command penstock --args {arguments} \\
  --max-retries 0 --task-timeout 24h

gcloud scheduler jobs create http {name} --project "$PROJECT" --location "$REGION" \\
  --schedule {expression} --time-zone {zone} --http-method POST --max-retry-attempts 0 \\
  --uri "https://run.googleapis.com/v2/projects/$PROJECT/locations/$REGION/jobs/{name}:run" \\
  --oauth-service-account-email "$SERVICE_ACCOUNT"
"""


def export(calling: Calling) -> Mapping[str, str]:
    image = calling.require_image("cloud-scheduler")
    if "://" not in calling.scheduled.file:
        raise JobError(f"{calling.scheduled.file} is on this machine; put it and its job into gs:// and name it there")
    if any("," in argument for argument in calling.arguments):
        raise JobError(f"{calling.scheduled.file}: gcloud takes a comma for the end of an argument; rename it")
    script = _SCRIPT.format(
        name=calling.name,
        image=shlex.quote(image),
        arguments=shlex.quote(",".join(calling.arguments)),
        expression=shlex.quote(calling.fields.expression),
        zone=shlex.quote(calling.zone),
    )
    return {f"{calling.name}.sh": script}
