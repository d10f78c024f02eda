#include "http/server_tls.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <openssl/sha.h>
#include <sys/resource.h>

#include <atomic>
#include <csignal>
#include <filesystem>
#include <fstream>
#include <thread>

#include "base/log.h"
#include "http/client.h"
#include "http/server.h"
#include "http/tls.h"
#include "support/tls_client.h"

namespace xgen::http {
namespace {

using namespace std::chrono_literals;
using scripted::Answer;
using scripted::Certificate;
using scripted::RawClient;
using scripted::TlsClient;
using ::testing::HasSubstr;

std::string digest_of(const Certificate& certificate) {
  unsigned char digest[32];
  unsigned size = 0;
  X509_digest(certificate.get(), EVP_sha256(), digest, &size);
  return {reinterpret_cast<char*>(digest), size};
}

// A server whose paths say what to do: /echo answers the body and whose certificate the client has shown; /large
// answers 4 MiB; /silent never answers; /cut begins a stream and lets go.
class ServerTlsTest : public ::testing::Test {
 protected:
  ServerTlsTest() {
    std::signal(SIGPIPE, SIG_IGN);  // of the clients
    log::set_level(log::Level::off);
    folder = std::filesystem::temp_directory_path() / ("xgen-server-tls-" + std::to_string(::getpid()));
    std::filesystem::remove_all(folder);
    std::filesystem::create_directories(folder);
    own.write_pem(file("cert.pem"));
    own.write_key_pem(file("key.pem"));
  }
  ~ServerTlsTest() override {
    server.reset();
    kept.clear();
    std::filesystem::remove_all(folder);
  }
  ServerTlsTest(const ServerTlsTest&) = delete;
  ServerTlsTest& operator=(const ServerTlsTest&) = delete;

  std::string file(const std::string& name) const { return (folder / name).string(); }

  struct Listener : ExchangeListener {
    explicit Listener(std::atomic<int>& count) : closes(count) {}
    void on_close() override { closes.fetch_add(1); }
    std::atomic<int>& closes;
  };

  void start(TlsOptions tls = {}, ServerOptions options = {}) {
    tls.cert_file = file("cert.pem");
    tls.key_file = file("key.pem");
    auto loaded = ServerTls::load(tls);
    ASSERT_TRUE(loaded.ok()) << loaded.error().message;
    options.host = "127.0.0.1";
    options.port = 0;
    options.tls = files = *loaded;
    auto bound = Server::bind(
        options,
        [this](const std::shared_ptr<Exchange>& exchange) {
          Request& request = exchange->request();
          if (request.path == "/silent" || request.path == "/cut") {
            exchange->set_listener(std::make_shared<Listener>(closes));
            if (request.path == "/cut") {
              exchange->begin_stream(200, "text/plain", {});
              return exchange->write("half");
            }
            kept.push_back(exchange);
            ++kept_count;
            return;
          }
          exchange->respond({.body = request.path == "/large" ? std::string(4 << 20, 'x')
                                                              : request.certificate + "|" + request.body});
        },
        [](const Request&, int status, std::string_view message) {
          return Response{.status = status, .body = std::string(message)};
        });
    ASSERT_TRUE(bound.ok()) << bound.error().message;
    server = *std::move(bound);
    server->start();
  }

  template <class Predicate>
  static bool eventually(Predicate predicate, std::chrono::milliseconds wait = 10s) {
    const auto end = std::chrono::steady_clock::now() + wait;
    while (!predicate()) {
      if (std::chrono::steady_clock::now() > end) return false;
      std::this_thread::sleep_for(1ms);
    }
    return true;
  }

  // Of a new connection; empty if there is none to be had.
  std::string shown() { return TlsClient(server->port()).certificate_digest(); }

  std::filesystem::path folder;
  std::shared_ptr<ServerTls> files;
  const Certificate own{"DNS:localhost,IP:127.0.0.1"};
  std::atomic<int> closes{0};
  std::vector<std::shared_ptr<Exchange>> kept;  // of the server's thread
  std::atomic<int> kept_count{0};               // how many there are
  std::unique_ptr<Server> server;
};

TEST_F(ServerTlsTest, AnswersRequestsOverOneSession) {
  start();
  for (const int version : {TLS1_2_VERSION, TLS1_3_VERSION}) {
    TlsClient client(server->port(), {.max_version = version, .protocols = "\x08http/1.1"});
    ASSERT_TRUE(client.shaken) << client.fault;
    EXPECT_EQ(SSL_version(client.session()), version);
    const unsigned char* protocol = nullptr;
    unsigned size = 0;
    SSL_get0_alpn_selected(client.session(), &protocol, &size);
    EXPECT_EQ(std::string(reinterpret_cast<const char*>(protocol), size), "http/1.1");
    for (int i = 0; i < 3; ++i) {
      ASSERT_TRUE(client.post("/echo", "body" + std::to_string(i)));
      EXPECT_EQ(client.read_answer().body, "|body" + std::to_string(i));
    }
    // Many records each way, and pipelined requests.
    ASSERT_TRUE(client.post("/echo", std::string(3 << 20, 'b')));
    EXPECT_EQ(client.read_answer().body.size(), (3U << 20) + 1);
    ASSERT_TRUE(client.send("GET /echo HTTP/1.1\r\nHost: t\r\n\r\nGET /large HTTP/1.1\r\nHost: t\r\n\r\n"));
    EXPECT_EQ(client.read_answer().body, "|");
    EXPECT_EQ(client.read_answer().body.size(), 4U << 20);
  }
}

TEST_F(ServerTlsTest, ClosesWithAFarewellUnlessTheAnswerWasCutOff) {
  start();
  TlsClient whole(server->port());
  ASSERT_TRUE(whole.send("GET /echo HTTP/1.1\r\nHost: t\r\nConnection: close\r\n\r\n"));
  EXPECT_EQ(whole.read_answer().status, 200);
  EXPECT_TRUE(whole.closed_within(2s));
  EXPECT_EQ(SSL_get_shutdown(whole.session()) & SSL_RECEIVED_SHUTDOWN, SSL_RECEIVED_SHUTDOWN);
  TlsClient cut(server->port());
  ASSERT_TRUE(cut.send("GET /cut HTTP/1.0\r\n\r\n"));  // ends with the connection
  EXPECT_TRUE(cut.closed_within(2s));
  EXPECT_EQ(SSL_get_shutdown(cut.session()) & SSL_RECEIVED_SHUTDOWN, 0);
}

TEST_F(ServerTlsTest, NoticesAClientThatGoes) {
  start();
  {
    TlsClient orderly(server->port());
    orderly.get("/silent");
    ASSERT_TRUE(eventually([&] { return kept_count.load() == 1; }));
    orderly.say_goodbye();
    EXPECT_TRUE(eventually([&] { return closes.load() == 1; }));
    TlsClient sudden(server->port());
    sudden.get("/silent");
    ASSERT_TRUE(eventually([&] { return kept_count.load() == 2; }));
  }
  EXPECT_TRUE(eventually([&] { return closes.load() == 2; }));
}

TEST_F(ServerTlsTest, AClientThatDoesNotReadIsClosed) {
  start({}, {.write_timeout = 200ms});
  TlsClient client(server->port(), {.receive_buffer = 4096});
  ASSERT_TRUE(client.get("/large"));
  EXPECT_TRUE(eventually([&] { return server->open_connections() == 0; }));
  EXPECT_FALSE(client.read_answer().complete);
}

TEST_F(ServerTlsTest, ResumesASessionFromItsTicket) {
  start();
  for (const int version : {TLS1_2_VERSION, TLS1_3_VERSION}) {
    SSL_SESSION* session = nullptr;
    {
      TlsClient first(server->port(), {.max_version = version});
      first.get("/echo");
      EXPECT_EQ(first.read_answer().status, 200);  // tickets of 1.3 come before it
      EXPECT_EQ(SSL_session_reused(first.session()), 0);
      session = SSL_get1_session(first.session());
      first.say_goodbye();
    }
    TlsClient second(server->port(), {.max_version = version, .resumes = session});
    EXPECT_EQ(SSL_session_reused(second.session()), 1);
    second.get("/echo");
    EXPECT_EQ(second.read_answer().status, 200);
    SSL_SESSION_free(session);
  }
}

TEST_F(ServerTlsTest, SpeaksOnlyWhatItMay) {
  start({.tls13_only = true});
  EXPECT_THAT(TlsClient(server->port(), {.max_version = TLS1_2_VERSION}).fault, HasSubstr("protocol version"));
  EXPECT_FALSE(TlsClient(server->port(), {.protocols = "\x02h2"}).shaken);
  TlsClient client(server->port(), {.protocols = "\x02h2\x08http/1.1"});
  EXPECT_TRUE(client.shaken);
}

TEST_F(ServerTlsTest, AsksForClientCertificates) {
  const Certificate authority("DNS:ca", -3600, 3600, nullptr, "the authority");
  const Certificate known("DNS:client", -3600, 3600, &authority, "team-a");
  const Certificate stranger("DNS:client", -3600, 3600, nullptr, "stranger");
  const Certificate expired("DNS:client", -3600, -60, &authority, "expired");
  authority.write_pem(file("ca.pem"));
  for (const bool required : {true, false}) {
    start({.client_ca_file = file("ca.pem"), .client_required = required});
    const auto ask = [&](const Certificate* shown) {
      TlsClient client(server->port(), {.shows = shown});
      client.get("/echo");
      const Answer answer = client.read_answer();
      // In 1.3 a client hears of it with its first read.
      return answer.status == 200 ? answer.body : client.fault;
    };
    EXPECT_EQ(ask(&known), "CN=team-a|");
    EXPECT_THAT(ask(&stranger), HasSubstr("alert"));
    EXPECT_THAT(ask(&expired), HasSubstr("expired"));
    if (required)
      EXPECT_THAT(ask(nullptr), HasSubstr("certificate required"));
    else
      EXPECT_EQ(ask(nullptr), "|");
  }
}

TEST_F(ServerTlsTest, TheClientShowsTheCertificateThatItIsGiven) {
  const Certificate authority("DNS:ca", -3600, 3600, nullptr, "the authority");
  const Certificate known("DNS:client", -3600, 3600, &authority, "team-a");
  authority.write_pem(file("ca.pem"));
  known.write_pem(file("known.pem"));
  known.write_key_pem(file("known.key"));
  known.write_key_pem(file("locked.key"), "secret");
  Client client;
  const auto ask = [&](const std::string& cert_file, const std::string& key_file) {
    ClientRequest request;
    request.url = *parse_url("https://localhost:" + std::to_string(server->port()) + "/echo");
    request.ca_file = file("cert.pem");
    request.cert_file = cert_file;
    request.key_file = key_file;
    std::string body;
    const Status status = fetch(client, std::move(request), {}, [&](std::string_view piece) {
      body += piece;
      return Status();
    });
    return status ? body : status.error().message;
  };
  start({.client_ca_file = file("ca.pem")});
  EXPECT_EQ(ask(file("known.pem"), file("known.key")), "CN=team-a|");
  EXPECT_THAT(ask("", ""), HasSubstr("no answer"));  // nor is the connection used that the other has left
  EXPECT_THAT(ask(file("cert.pem"), file("key.pem")), HasSubstr("no answer"));
  for (const char* key : {"key.pem", "locked.key", "none.key"})
    EXPECT_THAT(ask(file("known.pem"), file(key)),
                HasSubstr("no certificate can be shown to the server: " + file(key) + ": "));
}

TEST_F(ServerTlsTest, TellsWhoSpeaksPlainHttp) {
  start();
  for (const char* method : {"GET", "OPTIONS"}) {
    RawClient client(server->port());
    client.send(std::string(method) + " /echo HTTP/1.1\r\nHost: t\r\n\r\n");
    const Answer answer = client.read_answer();
    EXPECT_EQ(answer.status, 400);
    EXPECT_THAT(answer.body, HasSubstr("https://"));
    EXPECT_TRUE(client.closed_within(2s));
  }
}

// A client's first message of a handshake.
std::string client_hello() {
  const std::unique_ptr<SSL_CTX, SslFree> context(SSL_CTX_new(TLS_client_method()));
  const std::unique_ptr<SSL, SslFree> session(SSL_new(context.get()));
  BIO* const sent = BIO_new(BIO_s_mem());
  SSL_set_bio(session.get(), BIO_new(BIO_s_mem()), sent);
  std::string name = "LOCALHOST";
  SSL_ctrl(session.get(), SSL_CTRL_SET_TLSEXT_HOSTNAME, TLSEXT_NAMETYPE_host_name, name.data());
  SSL_connect(session.get());
  char bytes[4096];
  return {bytes, static_cast<std::size_t>(std::max(0, BIO_read(sent, bytes, sizeof(bytes))))};
}

TEST_F(ServerTlsTest, AHandshakeMayComeInPieces) {
  start();
  const std::string hello = client_hello();
  for (const std::size_t cut : {std::size_t{1}, std::size_t{3}, hello.find("LOCALHOST"), hello.size() - 1}) {
    RawClient client(server->port());
    ASSERT_TRUE(client.send(hello.substr(0, cut)));
    std::this_thread::sleep_for(20ms);
    ASSERT_TRUE(client.send(hello.substr(cut)));
    ASSERT_TRUE(client.read_some());
    EXPECT_EQ(client.input.front(), 0x16) << cut;  // a handshake's record, and no words
  }
}

TEST_F(ServerTlsTest, BadBytesEndTheirConnectionAlone) {
  start();
  TlsClient bystander(server->port());
  const std::string hello("\x16\x03\x01\x00\x05\x01\x00\x00\x01\x00", 10);  // a ClientHello that is too short
  for (const std::string& bytes :
       {hello, std::string("\x16\x03\x03\xff\xff", 5) + std::string(70'000, 'x'), std::string(1000, '\0'),
        std::string("\x80\x2e\x01\x03\x01", 5) + std::string(60, 's')}) {
    RawClient client(server->port());
    client.send(bytes);
    client.shut_writing();
    EXPECT_TRUE(client.closed_within(5s));
  }
  EXPECT_TRUE(eventually([&] { return server->open_connections() == 1; }));
  ASSERT_TRUE(bystander.get("/echo"));
  EXPECT_EQ(bystander.read_answer().status, 200);
}

TEST_F(ServerTlsTest, AHandshakeHasTheTimeOfAHead) {
  start({}, {.header_timeout = 300ms});
  RawClient silent(server->port());
  RawClient dripping(server->port());
  const auto begin = std::chrono::steady_clock::now();
  const std::string hello = std::string("\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", 11) + std::string(500, 'r');
  for (const char byte : hello)
    if (!dripping.send({&byte, 1}) || dripping.closed_within(20ms)) break;
  EXPECT_TRUE(silent.closed_within(2s));
  EXPECT_LT(std::chrono::steady_clock::now() - begin, 3s);
  EXPECT_TRUE(eventually([&] { return server->open_connections() == 0; }));
  // After it, a connection is idle, and its first head has its own time.
  TlsClient client(server->port());
  ASSERT_TRUE(client.shaken);
  EXPECT_FALSE(client.closed_within(500ms));
  client.send("GET /echo HT");
  EXPECT_EQ(client.read_answer().status, 408);
}

TEST_F(ServerTlsTest, DrainingDoesNotWaitForAHandshake) {
  start();
  RawClient silent(server->port());
  ASSERT_TRUE(eventually([&] { return server->open_connections() == 1; }));
  EXPECT_TRUE(server->drain(1s));
  EXPECT_TRUE(silent.closed_within(2s));
}

TEST_F(ServerTlsTest, ANewcomerTooManyIsClosed) {
  start({}, {.max_connections = 1});
  TlsClient busy(server->port());
  busy.get("/silent");
  ASSERT_TRUE(eventually([&] { return kept_count.load() == 1; }));
  RawClient newcomer(server->port());
  EXPECT_TRUE(newcomer.closed_within(2s));
  EXPECT_EQ(newcomer.input, "");
}

TEST_F(ServerTlsTest, TakesChangedFilesForNewConnections) {
  start();
  TlsClient before(server->port());
  ASSERT_EQ(before.certificate_digest(), digest_of(own));
  // The key comes after its certificate: in between the old pair is shown.
  const Certificate second("DNS:localhost");
  second.write_pem(file("new.pem"));
  std::filesystem::rename(file("new.pem"), file("cert.pem"));
  std::this_thread::sleep_for(1100ms);
  EXPECT_EQ(shown(), digest_of(own));
  second.write_key_pem(file("key.pem"));
  EXPECT_TRUE(eventually([&] { return shown() == digest_of(second); }));
  // What is begun goes on.
  before.get("/echo");
  EXPECT_EQ(before.read_answer().status, 200);
  std::ofstream(file("cert.pem")) << "no certificate";
  std::this_thread::sleep_for(1100ms);
  EXPECT_EQ(shown(), digest_of(second));
  std::filesystem::remove(file("cert.pem"));
  std::this_thread::sleep_for(1100ms);
  EXPECT_EQ(shown(), digest_of(second));
}

// As Kubernetes changes a mounted Secret: the files are links through ..data, which is swapped.
TEST_F(ServerTlsTest, SeesASwappedLink) {
  namespace fs = std::filesystem;
  const Certificate second("DNS:localhost");
  fs::create_directory(folder / "1");
  fs::create_directory(folder / "2");
  own.write_pem(file("1/cert.pem"));
  own.write_key_pem(file("1/key.pem"));
  second.write_pem(file("2/cert.pem"));
  second.write_key_pem(file("2/key.pem"));
  for (const char* name : {"cert.pem", "key.pem"}) {
    fs::remove(folder / name);
    fs::create_symlink(fs::path("..data") / name, folder / name);
  }
  fs::create_directory_symlink("1", folder / "..data");
  start();
  EXPECT_EQ(shown(), digest_of(own));
  fs::create_directory_symlink("2", folder / "..tmp");
  fs::rename(folder / "..tmp", folder / "..data");
  EXPECT_TRUE(eventually([&] { return shown() == digest_of(second); }));
}

TEST_F(ServerTlsTest, TriesAgainWhatCouldNotBeRead) {
  start();
  const Certificate second("DNS:localhost");
  second.write_pem(file("cert.pem"));
  second.write_key_pem(file("key.pem"));
  std::this_thread::sleep_for(1100ms);  // until the files are looked at again
  rlimit before{};
  ASSERT_EQ(getrlimit(RLIMIT_NOFILE, &before), 0);
  rlimit none = before;
  none.rlim_cur = 3;
  ASSERT_EQ(setrlimit(RLIMIT_NOFILE, &none), 0);
  files->accept(-1);
  ASSERT_EQ(setrlimit(RLIMIT_NOFILE, &before), 0);
  EXPECT_EQ(shown(), digest_of(own));
  EXPECT_TRUE(eventually([&] { return shown() == digest_of(second); }));
}

TEST_F(ServerTlsTest, SaysWhatIsWrongWithAFile) {
  const Certificate other("DNS:other");
  own.write_key_pem(file("secret.pem"), "passphrase");
  other.write_key_pem(file("other.pem"));
  std::ofstream(file("text.pem")) << "some text";
  std::ofstream(file("damaged.pem")) << "-----BEGIN CERTIFICATE-----\nMIIB\n-----END CERTIFICATE-----\n";
  const std::string cert = file("cert.pem");
  const std::string key = file("key.pem");
  const struct {
    TlsOptions options;
    std::string message;
  } cases[] = {
      {{file("none.pem"), key, ""}, "server.tls_cert_file: " + file("none.pem") + ": No such file or directory"},
      {{file("text.pem"), key, ""},
       "server.tls_cert_file: " + file("text.pem") +
           ": holds no certificate in PEM form (-----BEGIN CERTIFICATE-----)"},
      {{file("damaged.pem"), key, ""}, "server.tls_cert_file: " + file("damaged.pem") + ": certificate 1 is damaged: "},
      {{folder.string(), key, ""}, "server.tls_cert_file: " + folder.string() + ": "},
      {{cert, file("none.pem"), ""}, "server.tls_key_file: " + file("none.pem") + ": No such file or directory"},
      {{cert, cert, ""}, "server.tls_key_file: " + cert + ": holds no private key in PEM form"},
      {{cert, file("secret.pem"), ""},
       "server.tls_key_file: " + file("secret.pem") + ": the key has a passphrase; expected one without"},
      {{cert, file("other.pem"), ""},
       "server.tls_key_file: " + file("other.pem") + ": the key is not that of the (first) certificate in " + cert},
      {{cert, key, file("text.pem")}, "server.tls_client_ca_file: " + file("text.pem") + ": holds no certificate"},
  };
  for (const auto& [options, message] : cases) {
    const auto loaded = ServerTls::load(options);
    ASSERT_FALSE(loaded.ok()) << message;
    EXPECT_THAT(loaded.error().message, ::testing::StartsWith(message));
    EXPECT_EQ(loaded.error().code, ErrorCode::invalid_argument);
  }
  // One whose time is over is shown: whoever checks it decides.
  const Certificate old("DNS:localhost", -7200, -3600);
  old.write_pem(cert);
  old.write_key_pem(key);
  log::set_level(log::Level::warn);
  ::testing::internal::CaptureStderr();
  EXPECT_TRUE(ServerTls::load({cert, key, ""}).ok());
  EXPECT_THAT(::testing::internal::GetCapturedStderr(), HasSubstr("the TLS certificate has expired file=" + cert));
}

TEST_F(ServerTlsTest, ManyClientsOnSeveralThreads) {
  start({}, {.threads = 3});
  std::vector<std::thread> clients;
  std::atomic<int> answered{0};
  for (int i = 0; i < 8; ++i) {
    clients.emplace_back([&] {
      for (int k = 0; k < 10; ++k) {
        TlsClient client(server->port());
        for (int j = 0; j < 10; ++j) {
          client.post("/echo", "x");
          if (client.read_answer().status == 200) answered.fetch_add(1);
        }
      }
    });
  }
  for (auto& each : clients) each.join();
  EXPECT_EQ(answered.load(), 800);
}

}  // namespace
}  // namespace xgen::http
