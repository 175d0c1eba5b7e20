"""The web server: pages, `/api/v1`, OpenAI's shape under `/v1`, live sockets. Never imports torch."""
