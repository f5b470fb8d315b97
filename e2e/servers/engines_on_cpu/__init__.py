"""Plugins by which two engine servers run a tiny model on a CPU, where their own releases lack a
little for it. Their HTTP, their queues, their schedulers and their pipelines stay what they are."""
