import datetime
import ssl

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from actors.search.seams import ErrorKind, ProviderError
from tests.unit.actors.search.fetch.hostile_site import HERE, SITE, hostile_web, page, redirect

OTHER = "other.example.org"


@pytest.fixture(scope="module")
def certificate(tmp_path_factory):
    """A certificate for SITE alone, signed by itself, and its key; PEM, in one file."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, SITE)])
    now = datetime.datetime.now(datetime.UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(SITE)]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    path = tmp_path_factory.mktemp("tls") / "site.pem"
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    path.write_bytes(private + made.public_bytes(serialization.Encoding.PEM))
    return path


@pytest.fixture
def served(certificate):
    """The server's side, and the names that clients asked it for."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    asked = []
    context.sni_callback = lambda socket, name, context: asked.append(name)
    return context, asked


def trusting(certificate):
    return ssl.create_default_context(cafile=str(certificate))


async def test_name_and_certificate_are_the_hosts_though_the_address_is_pinned(certificate, served):
    context, asked = served
    async with hostile_web(context) as web:
        web.site.pages["/"] = page("secure")
        url = web.site.url().replace("http:", "https:")
        got = await web.get(url, tls=trusting(certificate))
        assert got.body == b"secure"
        assert asked == [SITE]
        assert f"Host: {SITE}:{web.site.port}" in web.site.requests[0]


@pytest.mark.parametrize("host", [OTHER, HERE])
async def test_a_certificate_of_another_host_is_refused(certificate, served, host):
    async with hostile_web(served[0]) as web:
        web.names.answers[OTHER] = [[HERE]]
        with pytest.raises(ProviderError) as told:
            await web.get(f"https://{host}:{web.site.port}/", tls=trusting(certificate))
        assert told.value.kind is ErrorKind.BAD_REQUEST
        assert web.site.requests == []


async def test_a_certificate_that_nobody_vouches_for_is_refused(served):
    async with hostile_web(served[0]) as web:
        with pytest.raises(ProviderError, match="certificate"):
            await web.get(web.site.url().replace("http:", "https:"))
        assert web.site.requests == []


async def test_a_server_that_does_not_speak_tls_may_do_so_later():
    async with hostile_web() as web:
        with pytest.raises(ProviderError) as told:
            await web.get(web.site.url().replace("http:", "https:"), deadline=0.1)
        assert told.value.kind is ErrorKind.TRANSIENT


async def test_a_redirect_from_https_to_an_inner_address_is_refused(certificate, served):
    async with hostile_web(served[0]) as web:
        web.site.pages["/"] = redirect("https://10.0.0.1/")
        with pytest.raises(ProviderError, match="private"):
            await web.get(web.site.url().replace("http:", "https:"), tls=trusting(certificate))
