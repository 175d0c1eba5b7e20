"""Who is let in, and what a foreign page, name or file cannot do."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from fastapi import FastAPI
from starlette.testclient import TestClient
from starlette.websockets import WebSocketDisconnect

from afina.core.errors import AfinaError
from afina.core.paths import Home
from afina.web.access import Access
from afina.web.app import create_app
from afina.web.settings import ServerSettings
from tests.web.conftest import ADDRESS, add_pairs, problems

HTML = {"Accept": "text/html"}
LIVE = ADDRESS.replace("http", "ws") + "/api/v1/live"
SAME_ORIGIN = {"Origin": ADDRESS, "Sec-Fetch-Site": "same-origin"}


def token_of(client: TestClient, path: str = "/training") -> str:
    """The token of a page, as its scripts read it; the client keeps the cookie."""
    page = client.get(path, headers=HTML)
    found = re.search(r'(?:name="afina-token" content|name="token" value)="([0-9a-f]+)"', page.text)
    assert found, page.text[:500]
    return found[1]


@pytest.mark.parametrize("host", ["127.0.0.1:8642", "localhost", "localhost:1", "[::1]:8642", "192.168.1.7"])
def test_own_names_and_plain_addresses_are_answered(client: TestClient, host: str) -> None:
    assert client.get("/api/v1/health", headers={"Host": host}).status_code == 200


@pytest.mark.parametrize(
    "host",
    ["evil.example", "127.0.0.1.evil.example:8642", "localhost.evil.example", "", "a b", "x@127.0.0.1", "localhost:x"],
)
def test_foreign_names_are_refused(client: TestClient, host: str) -> None:
    answer = client.get("/api/v1/health", headers={"Host": host})
    assert answer.status_code == 403
    assert problems(answer)[0]["code"] == "host_not_allowed"


def test_a_name_can_be_allowed(login_client: TestClient) -> None:
    assert login_client.get("/api/v1/health", headers={"Host": "Afina.Example:8642"}).status_code == 200


@pytest.mark.parametrize(
    "headers",
    [
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site"},
        {"Origin": "http://evil.example"},
        {"Origin": "null"},
        {"Origin": "http://127.0.0.1:9999"},
        {"Origin": "http://127.0.0.1:8642.evil.example"},
    ],
)
def test_another_site_changes_nothing(home: Home, client: TestClient, headers: dict[str, str]) -> None:
    add_pairs(home)
    token = token_of(client)
    answer = client.delete("/api/v1/datasets/sums.json", headers={**headers, "X-Afina-Token": token})
    assert answer.status_code == 403
    assert problems(answer)[0]["code"] == "foreign_origin"
    assert (home.datasets / "sums.json").exists()


@pytest.mark.parametrize("token", [None, "", "0" * 64, "é"])
def test_a_browser_needs_its_pages_token(home: Home, client: TestClient, token: str | None) -> None:
    add_pairs(home)
    token_of(client)
    headers = SAME_ORIGIN if token is None else {**SAME_ORIGIN, "X-Afina-Token": token.encode()}
    answer = client.delete("/api/v1/datasets/sums.json", headers=headers)
    assert answer.status_code == 403
    assert problems(answer)[0]["code"] == "page_token"
    assert (home.datasets / "sums.json").exists()


def test_a_page_may_change_things(home: Home, client: TestClient) -> None:
    add_pairs(home)
    token = token_of(client)
    answer = client.delete("/api/v1/datasets/sums.json", headers={**SAME_ORIGIN, "X-Afina-Token": token})
    assert answer.status_code == 200
    assert not (home.datasets / "sums.json").exists()


def test_a_page_stays_valid_when_the_server_starts_again(home: Home, client: TestClient) -> None:
    token = token_of(client)
    add_pairs(home)
    with TestClient(
        create_app(home, ServerSettings(supervise=False)), base_url=ADDRESS, cookies=dict(client.cookies)
    ) as again:
        assert (
            again.delete("/api/v1/datasets/sums.json", headers={**SAME_ORIGIN, "X-Afina-Token": token}).status_code
            == 200
        )


def test_the_token_of_one_browser_is_no_use_to_another(home: Home, app: FastAPI, client: TestClient) -> None:
    add_pairs(home)
    with TestClient(app, base_url=ADDRESS) as other:
        token = token_of(other)
    token_of(client)
    assert client.delete("/api/v1/datasets/sums.json", headers={"X-Afina-Token": token}).status_code == 403


def test_a_program_on_this_machine_needs_nothing(home: Home, client: TestClient) -> None:
    add_pairs(home)
    assert client.delete("/api/v1/datasets/sums.json").status_code == 200


def test_the_cookie_is_out_of_reach(client: TestClient) -> None:
    cookie = client.get("/training", headers=HTML).headers["set-cookie"]
    assert "HttpOnly" in cookie
    assert "SameSite=Strict" in cookie


@pytest.mark.parametrize("path", ["/training", "/api/v1/health", "/api/v1/nothing", "/api/v1/docs"])
def test_every_answer_carries_the_policy(client: TestClient, path: str) -> None:
    headers = client.get(path, headers=HTML).headers
    policy = headers["content-security-policy"]
    assert "default-src 'self'" in policy
    assert "frame-ancestors 'none'" in policy
    assert "unsafe" not in policy
    assert headers["x-content-type-options"] == "nosniff"
    assert "access-control-allow-origin" not in headers


@pytest.mark.parametrize("path", ["/training", "/datasets", "/models", "/runs", "/chat", "/api/v1/docs", "/nothing"])
def test_pages_hold_nothing_that_the_policy_forbids(home: Home, client: TestClient, path: str) -> None:
    add_pairs(home)
    text = client.get(path, headers=HTML).text
    assert not re.search(r"\sstyle=|\son\w+=\"|<style|javascript:", text)
    for script in re.findall(r"<script[^>]*>", text):
        assert "src=" in script or 'type="application/json"' in script
    assert not re.findall(r'(?:src|href)="(?:https?:)?//', text)


def test_sockets_only_from_our_own_pages(client: TestClient) -> None:
    for origin in ("http://evil.example", "null", "https://127.0.0.1:1"):
        with pytest.raises(WebSocketDisconnect), client.websocket_connect(LIVE, headers={"Origin": origin}):
            pass
    with client.websocket_connect(LIVE, headers={"Origin": ADDRESS}) as socket:
        assert socket.receive_json() == {"runs": []}


def test_sockets_only_to_our_own_name(client: TestClient) -> None:
    headers = {"Host": "evil.example", "Origin": "http://evil.example"}
    with pytest.raises(WebSocketDisconnect), client.websocket_connect(LIVE, headers=headers):
        pass


NAMES = [
    "../../../etc/passwd", "..%2f..%2fafina.db", "%2e%2e%2fafina.db", "..", "....//", "/etc/passwd", "%2Fetc%2Fpasswd", "..\\..\\x",
    "C:\\x", "con", "nul.txt", ".state", "a%00b", "%0d%0aX: y", "x" * 300, "%ff%fe", "%F0%9F%8C%B6", "<img src=x>", "~root", "'; drop table runs; --",
]  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_hostile_names_lead_nowhere(home: Home, client: TestClient, name: str) -> None:
    secret = home.root.parent / "secret.txt"
    secret.write_text("top secret")
    for path in ("datasets/{}", "datasets/{}/rows", "models/{}", "runs/{}", "runs/{}/events", "runs/{}/console"):
        answer = client.get("/api/v1/" + path.format(name))
        assert answer.status_code in (404, 405, 422), (path, name, answer.text)
        problems(answer)
    for path in ("datasets/{}", "models/{}", "runs/{}"):
        assert client.delete("/api/v1/" + path.format(name)).status_code in (404, 405, 422), (path, name)
    for path in ("/static/x/{}", "/static/{}/base.css/x"):
        assert client.get(path.format(name)).status_code == 404
    assert secret.exists()
    assert home.database.exists() or not home.database.exists()


@pytest.mark.parametrize(
    "name",
    ["../x.txt", "..\\x.txt", "/tmp/x.txt", ".hidden", "a/b.txt", "con.txt", "x" * 300, "a\x01b", " ", "", "nul"],
)
def test_uploads_stay_in_their_folder(home: Home, client: TestClient, name: str) -> None:
    before = {path for path in home.root.parent.rglob("*") if ".state" not in str(path) and "afina.db" not in str(path)}
    body = f'--b\r\nContent-Disposition: form-data; name="file"; filename="{name}"\r\n\r\nhello\r\n--b--\r\n'.encode()
    answer = client.post("/api/v1/datasets", content=body, headers={"Content-Type": "multipart/form-data; boundary=b"})
    assert answer.status_code == 422, answer.text
    problems(answer)
    after = {path for path in home.root.parent.rglob("*") if ".state" not in str(path) and "afina.db" not in str(path)}
    assert after == before


def test_a_symbolic_link_leads_nowhere(home: Home, client: TestClient, tmp_path: Path) -> None:
    secret = tmp_path / "secret.json"
    secret.write_text('[{"instruction": "a", "output": "top secret"}]')
    (home.datasets / "link.json").symlink_to(secret)
    answer = client.get("/api/v1/datasets/link.json/rows")
    assert "top secret" not in answer.text
    assert answer.status_code in (404, 422)


def test_too_much_is_refused(home: Home) -> None:
    settings = ServerSettings(supervise=False, body_limit=1000, upload_limit=20_000)
    with TestClient(create_app(home, settings), base_url=ADDRESS, raise_server_exceptions=False) as client:
        long = {"model": "m", "messages": [{"role": "user", "content": "x" * 2000}]}
        assert problems(client.post("/api/v1/chat", json=long))[0]["code"] == "too_large"

        def pieces() -> object:
            yield b'{"model": "'
            for _ in range(100):
                yield b"x" * 100

        answer = client.post("/api/v1/chat", content=pieces(), headers={"Content-Type": "application/json"})
        assert answer.status_code == 413
        assert client.post("/api/v1/datasets", files={"file": ("a.txt", b"x" * 50_000)}).status_code == 413
        assert client.post("/api/v1/datasets", files={"file": ("a.txt", b"Q: a\nA: b\n")}).status_code == 201
    assert [path.name for path in home.datasets.iterdir()] == ["a.txt"]


def test_beyond_this_machine_everything_asks_who_you_are(login_client: TestClient) -> None:
    for path in ("/api/v1/runs", "/api/v1/openapi.json", "/v1/models", "/api/v1/machine"):
        answer = login_client.get(path)
        assert answer.status_code == 401
        assert problems(answer)[0]["code"] == "sign_in"
    answer = login_client.get("/datasets", headers=HTML)
    assert (answer.status_code, answer.headers["location"]) == (303, "/login?next=/datasets")
    with pytest.raises(WebSocketDisconnect), login_client.websocket_connect(LIVE):
        pass
    assert login_client.get("/api/v1/health").status_code == 200


def sign_in(client: TestClient, password: str, next_: str = "/datasets") -> object:
    form = {"password": password, "token": token_of(client, "/login"), "next": next_}
    return client.post("/login", data=form, headers=SAME_ORIGIN)


def test_signing_in_and_out(login_client: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("afina.web.login.PAUSE", 0.0)
    wrong = sign_in(login_client, "wrong horse")
    assert wrong.status_code == 403
    assert login_client.get("/api/v1/runs").status_code == 401
    right = sign_in(login_client, "correct horse")
    assert (right.status_code, right.headers["location"]) == (303, "/datasets")
    assert "HttpOnly" in right.headers["set-cookie"]
    assert login_client.get("/api/v1/runs").status_code == 200
    with login_client.websocket_connect(LIVE, headers={"Origin": ADDRESS}) as socket:
        assert socket.receive_json() == {"runs": []}
    login_client.post("/logout", headers={**SAME_ORIGIN, "X-Afina-Token": token_of(login_client)})
    assert login_client.get("/api/v1/runs").status_code == 401


@pytest.mark.parametrize(
    "target", ["//evil.example", "https://evil.example", "/\\evil.example", "javascript:alert(1)", "/a\r\nX: y"]
)
def test_signing_in_never_leads_elsewhere(login_client: TestClient, target: str) -> None:
    assert sign_in(login_client, "correct horse", target).headers["location"] == "/"


def test_a_forged_cookie_is_no_cookie(login_client: TestClient) -> None:
    for value in ("x.1.99999999999.abc", "....", "x.1.99999999999." + "0" * 64, "é"):
        headers = {"Cookie": f"afina_session_8642={value}".encode()}
        assert login_client.get("/api/v1/runs", headers=headers).status_code == 401


def test_a_new_password_signs_everyone_out(home: Home) -> None:
    access = Access(home)
    access.set_password("first password")
    _, cookie = access.new_session(signed_in=True)
    assert access.session(cookie) is not None
    access.set_password("second password")
    assert access.session(cookie) is None
    with pytest.raises(AfinaError) as caught:
        access.set_password("short")
    assert caught.value.code == "short_password"


def test_an_api_token_opens_the_api(home: Home) -> None:
    token = "a token that nobody can guess"
    app = create_app(home, ServerSettings(host="0.0.0.0", login=True, supervise=False, token=token))
    app.state.access.set_password("correct horse")
    with TestClient(app, base_url=ADDRESS, raise_server_exceptions=False) as client:
        headers = {"Authorization": f"Bearer {token}"}
        assert client.get("/api/v1/runs", headers=headers).status_code == 200
        assert client.delete("/api/v1/runs/none", headers=headers).status_code == 404
        assert client.get("/api/v1/runs", headers={"Authorization": "Bearer x"}).status_code == 401
        assert client.get("/api/v1/runs", headers={"Authorization": f"Basic {token}"}).status_code == 401
    kept = (home.state / "access.json").read_text()
    assert token not in kept
    assert "correct horse" not in kept
    assert (home.state / "access.json").stat().st_mode & 0o077 == 0
