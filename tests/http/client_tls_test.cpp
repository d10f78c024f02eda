#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <csignal>
#include <filesystem>
#include <fstream>
#include <mutex>
#include <utility>

#include "http/client.h"
#include "support/tls_server.h"

namespace xgen::http {
namespace {

using namespace std::chrono_literals;
using scripted::Certificate;
using scripted::RawConnection;
using scripted::RawServer;
using scripted::speak_tls;
using scripted::TlsConnection;
using ::testing::AnyOf;
using ::testing::HasSubstr;

class ClientTls : public ::testing::Test {
 protected:
  ClientTls() {
    std::signal(SIGPIPE, SIG_IGN);
    folder_ = std::filesystem::temp_directory_path() / ("xgen-tls-" + std::to_string(::getpid()));
    std::filesystem::create_directories(folder_);
    ca_file = (folder_ / "ca.pem").string();
  }
  ~ClientTls() override { std::filesystem::remove_all(folder_); }
  ClientTls(const ClientTls&) = delete;
  ClientTls& operator=(const ClientTls&) = delete;

  // The body of the answer.
  Result<std::string> get(Client& client, const std::string& host, const RawServer& server,
                          const std::string& address = "") {
    ClientRequest request;
    request.url = *parse_url("https://" + host + ":" + std::to_string(server.port()) + "/");
    request.url.address = address;
    request.ca_file = ca_file;
    request.pinned_cert_file = pinned_file;
    request.connect_timeout = 5s;
    std::string body;
    const Status status = fetch(client, std::move(request), {}, [&](std::string_view piece) {
      body += piece;
      return Status();
    });
    if (!status) return status.error();
    return body;
  }

  std::string ca_file;
  std::string pinned_file;

 private:
  std::filesystem::path folder_;
};

void answer_all(RawConnection& connection) {
  while (!connection.read_request().line.empty()) connection.answer("secret");
}

// The certificate is the name's, whichever of its addresses is called.
TEST_F(ClientTls, AServerAtAGivenAddressShowsTheNamesCertificate) {
  const Certificate certificate("DNS:pods.test");
  certificate.write_pem(ca_file);
  std::mutex mutex;
  std::string name;
  RawServer server(
      [&](RawConnection& connection) {
        {
          std::lock_guard lock(mutex);
          name = dynamic_cast<TlsConnection&>(connection).server_name;
        }
        answer_all(connection);
      },
      speak_tls(certificate));
  Client client;
  const auto body = get(client, "pods.test", server, "127.0.0.1");
  ASSERT_TRUE(body.ok()) << body.error().message;
  EXPECT_EQ(*body, "secret");
  EXPECT_EQ(name, "pods.test");
  const auto other = get(client, "other.test", server, "127.0.0.1");
  ASSERT_FALSE(other.ok());
  EXPECT_THAT(other.error().message, HasSubstr("not trusted"));
}

TEST_F(ClientTls, ATrustedServerIsSpokenToAndItsConnectionKept) {
  const Certificate certificate("DNS:localhost,IP:127.0.0.1");
  certificate.write_pem(ca_file);
  std::mutex mutex;
  std::vector<std::string> names;
  RawServer server(
      [&](RawConnection& connection) {
        {
          std::lock_guard lock(mutex);
          names.push_back(dynamic_cast<TlsConnection&>(connection).server_name);
        }
        answer_all(connection);
      },
      speak_tls(certificate));
  Client client;
  for (int i = 0; i < 3; ++i) {
    const auto body = get(client, "localhost", server);
    ASSERT_TRUE(body.ok()) << body.error().message;
    EXPECT_EQ(*body, "secret");
  }
  EXPECT_EQ(server.accepted(), 1);
  const auto body = get(client, "127.0.0.1", server);
  ASSERT_TRUE(body.ok()) << body.error().message;
  std::lock_guard lock(mutex);
  EXPECT_EQ(names, (std::vector<std::string>{"localhost", ""}));  // addresses are no server names
}

TEST_F(ClientTls, LargeBodiesInBothDirections) {
  const Certificate certificate("DNS:localhost");
  certificate.write_pem(ca_file);
  RawServer server(
      [](RawConnection& connection) {
        const auto request = connection.read_request();
        connection.answer(request.body);
        connection.closed_within(10s);
      },
      speak_tls(certificate));
  Client client;
  ClientRequest request;
  request.method = "POST";
  request.url = *parse_url("https://localhost:" + std::to_string(server.port()));
  request.ca_file = ca_file;
  for (int i = 0; i < 8 << 20; ++i) request.body += static_cast<char>('a' + i % 26);
  const std::string sent = request.body;
  std::string got;
  const Status status = fetch(client, std::move(request), {}, [&](std::string_view piece) {
    got += piece;
    return Status();
  });
  ASSERT_TRUE(status.ok()) << status.error().message;
  EXPECT_TRUE(got == sent);
}

TEST_F(ClientTls, UntrustedCertificatesAreRefused) {
  const Certificate ours("DNS:localhost");
  ours.write_pem(ca_file);
  Client client;
  {
    const Certificate other("DNS:localhost");
    RawServer server(answer_all, speak_tls(other));
    const auto body = get(client, "localhost", server);
    ASSERT_FALSE(body.ok());
    EXPECT_EQ(body.error().code, ErrorCode::unavailable);
    EXPECT_THAT(body.error().message, HasSubstr("certificate is not trusted"));
    EXPECT_THAT(body.error().message, HasSubstr("https://localhost:"));
  }
  const struct {
    std::string names;
    long to;
    std::string host;
    std::string message;
  } cases[] = {
      {"DNS:other.example", 3600, "localhost", "hostname mismatch"},
      {"DNS:localhost", 3600, "127.0.0.1", "IP address mismatch"},
      {"DNS:localhost", -60, "localhost", "expired"},
  };
  for (const auto& each : cases) {
    const Certificate certificate(each.names, -7200, each.to);
    certificate.write_pem(ca_file);
    RawServer server(answer_all, speak_tls(certificate));
    const auto body = get(client, each.host, server);
    ASSERT_FALSE(body.ok()) << each.message;
    EXPECT_THAT(body.error().message, HasSubstr(each.message));
  }
}

TEST_F(ClientTls, APinnedCertificateIsTakenWhateverItsNameAndTimeAndNoOther) {
  const Certificate pinned("DNS:other.example", -7200, -60);
  const Certificate other("DNS:localhost,IP:127.0.0.1");
  other.write_pem(ca_file);
  pinned_file = ca_file + ".pinned";
  pinned.write_pem(pinned_file);
  Client client;
  for (const int version : {TLS1_2_VERSION, TLS1_3_VERSION}) {
    RawServer server(answer_all, speak_tls(pinned, version));
    for (const char* host : {"localhost", "127.0.0.1"}) {
      const auto body = get(client, host, server);
      ASSERT_TRUE(body.ok()) << body.error().message;
      EXPECT_EQ(*body, "secret");
    }
    // Not on the connection that is kept for who has pinned it.
    const std::string kept = std::exchange(pinned_file, "");
    EXPECT_FALSE(get(client, "localhost", server).ok());
    pinned_file = kept;
    RawServer stranger(answer_all, speak_tls(other, version));
    const auto body = get(client, "localhost", stranger);
    ASSERT_FALSE(body.ok());
    EXPECT_THAT(body.error().message, HasSubstr("not trusted: it is not that of pinned_cert_file"));
  }
  RawServer server(answer_all, speak_tls(other));
  other.write_pem(pinned_file);
  EXPECT_TRUE(get(client, "localhost", server).ok());  // read again
  std::ofstream(pinned_file) << "nonsense";
  for (const char* want : {".pinned: no start line", ".pinned: No such file"}) {
    const auto body = get(client, "127.0.0.1", server);
    ASSERT_FALSE(body.ok());
    EXPECT_THAT(body.error().message, HasSubstr(want));
    std::filesystem::remove(pinned_file);
  }
}

TEST_F(ClientTls, AChangedCaFileIsReadAgain) {
  const Certificate first("DNS:localhost");
  const Certificate second("DNS:localhost,DNS:second.example");
  first.write_pem(ca_file);
  Client client;
  RawServer server(
      [](RawConnection& connection) {
        connection.read_request();
        connection.answer("secret", "200 OK", "Connection: close\r\n");
      },
      speak_tls(second));
  EXPECT_FALSE(get(client, "localhost", server).ok());
  second.write_pem(ca_file);
  EXPECT_TRUE(get(client, "localhost", server).ok());
}

TEST_F(ClientTls, FaultsOfTheCaFileNameIt) {
  const Certificate certificate("DNS:localhost");
  RawServer server(answer_all, speak_tls(certificate));
  Client client;
  auto body = get(client, "localhost", server);  // it does not exist
  ASSERT_FALSE(body.ok());
  EXPECT_THAT(body.error().message, HasSubstr(ca_file));
  std::ofstream(ca_file) << "nonsense";
  body = get(client, "localhost", server);
  ASSERT_FALSE(body.ok());
  EXPECT_THAT(body.error().message, HasSubstr(ca_file));
}

TEST_F(ClientTls, TheEnvironmentNamesTheSystemsStore) {
  const Certificate certificate("DNS:localhost");
  certificate.write_pem(ca_file);
  RawServer server(answer_all, speak_tls(certificate));
  ::setenv("SSL_CERT_FILE", ca_file.c_str(), 1);
  ca_file.clear();
  Client client;
  const auto body = get(client, "localhost", server);
  ::unsetenv("SSL_CERT_FILE");
  ASSERT_TRUE(body.ok()) << body.error().message;
}

TEST_F(ClientTls, OldProtocolsAndPlainServersAreRefused) {
  const Certificate certificate("DNS:localhost");
  certificate.write_pem(ca_file);
  Client client;
  {
    RawServer server(answer_all, speak_tls(certificate, TLS1_1_VERSION));
    const auto body = get(client, "localhost", server);
    ASSERT_FALSE(body.ok());
    EXPECT_THAT(body.error().message, AnyOf(HasSubstr("TLS"), HasSubstr("closed")));
  }
  RawServer plain([](RawConnection& connection) {
    connection.read_some();
    connection.answer("plain");
  });
  const auto body = get(client, "localhost", plain);
  ASSERT_FALSE(body.ok());
  EXPECT_THAT(body.error().message, HasSubstr("TLS"));
  // One that says nothing at all.
  RawServer silent([](RawConnection& connection) { connection.closed_within(10s); });
  ClientRequest request;
  request.url = *parse_url("https://localhost:" + std::to_string(silent.port()));
  request.ca_file = ca_file;
  request.connect_timeout = 100ms;
  const Status status = fetch(client, request, {}, {});
  EXPECT_EQ(status.error().code, ErrorCode::timeout);
  EXPECT_THAT(status.error().message, HasSubstr("TLS"));
}

TEST_F(ClientTls, ACutConnectionIsNoEndOfABody) {
  const Certificate certificate("DNS:localhost");
  certificate.write_pem(ca_file);
  RawServer server(
      [](RawConnection& connection) {
        connection.read_request();
        connection.send("HTTP/1.1 200 OK\r\n\r\nto the end");
        if (connection.number == 0) dynamic_cast<TlsConnection&>(connection).say_goodbye();
      },
      speak_tls(certificate));
  Client client;
  const auto whole = get(client, "localhost", server);
  ASSERT_TRUE(whole.ok()) << whole.error().message;
  EXPECT_EQ(*whole, "to the end");
  EXPECT_FALSE(get(client, "localhost", server).ok());
}

TEST_F(ClientTls, AKeptConnectionThatTheServerClosedIsReplaced) {
  const Certificate certificate("DNS:localhost");
  certificate.write_pem(ca_file);
  RawServer server(
      [](RawConnection& connection) {
        connection.read_request();
        connection.answer("secret");
        if (connection.number == 0) {
          connection.read_some();
          connection.reset();
          return;
        }
        connection.closed_within(10s);
      },
      speak_tls(certificate));
  Client client;
  EXPECT_TRUE(get(client, "localhost", server).ok());
  const auto body = get(client, "localhost", server);
  ASSERT_TRUE(body.ok()) << body.error().message;
  EXPECT_EQ(client.counts().retried, 1U);
}

}  // namespace
}  // namespace xgen::http
