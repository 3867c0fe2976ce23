"""HTTP endpoint with health, metrics, status and a page. Read-only; every answer is built from memory."""
