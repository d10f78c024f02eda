"""Certificates for tests: an authority and what it signs."""
import datetime
import ipaddress
import ssl

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID


class Authority:
    def __init__(self, folder, name="test authority"):
        self.folder = folder
        self.key, self.certificate = ec.generate_private_key(ec.SECP256R1()), None
        self.certificate = self._sign(self.key, name, [], authority=True)
        self.file = folder / f"{name.replace(' ', '-')}.pem"
        self.file.write_bytes(self.certificate.public_bytes(serialization.Encoding.PEM))

    def _sign(self, key, name, names, days=(-1, 30), authority=False):
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        now = datetime.datetime.now(datetime.timezone.utc)
        builder = (x509.CertificateBuilder().subject_name(subject)
                   .issuer_name(self.certificate.subject if self.certificate else subject)
                   .public_key(key.public_key()).serial_number(x509.random_serial_number())
                   .not_valid_before(now + datetime.timedelta(days=days[0])).not_valid_after(now + datetime.timedelta(days=days[1]))
                   .add_extension(x509.BasicConstraints(ca=authority, path_length=None), critical=True))
        if names:
            builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
        return builder.sign(self.key, hashes.SHA256())

    def issue(self, stem, name="xgen-model", days=(-1, 30), names=None):
        """Writes STEM.pem and STEM.key for localhost and 127.0.0.1, or other names; their paths, and the serial number."""
        key = ec.generate_private_key(ec.SECP256R1())
        names = [x509.DNSName(each) for each in names] if names else [x509.DNSName("localhost"), x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]
        certificate = self._sign(key, name, names, days)
        pem, secret = self.folder / f"{stem}.pem", self.folder / f"{stem}.key"
        pem.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
        secret.write_bytes(key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()))
        return pem, secret, certificate.serial_number

    def context(self, shows=None):
        """For a client that trusts this authority, and shows the certificate of this stem."""
        context = ssl.create_default_context(cafile=str(self.file))
        if shows:
            context.load_cert_chain(self.folder / f"{shows}.pem", self.folder / f"{shows}.key")
        return context
