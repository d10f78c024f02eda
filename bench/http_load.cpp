// http_load: measures an OpenAI-compatible server over HTTP with one thread on epoll, so that the client costs little.
//
//   http_load --port P --mode requests --connections 16 --seconds 5   one-token answers: requests/s, p50, p99
//   http_load --port P --mode stream --connections 16 --tokens 256    SSE events/s, and their gaps
//   http_load --port P --mode clock --connections 2000 --tokens 64    one stream each of a model whose tokens tell when
//                                                                     they were made ("@", ns, ";"): what came of them,
//                                                                     and how long after
//   http_load --port P --mode hold --connections 10000 --pid PID      streams that stay open: resident memory of PID,
//   when all
//                                                                     have begun or --seconds are over
//   http_load --port P --mode relay --to Q   hands on what comes at port P to port Q and back, and nothing else: the
//                                            least that anything in between can cost
// Also: --model NAME (scripted), --prompt TEXT ("hold" for --mode hold), --chat.
#include <arpa/inet.h>
#include <netinet/tcp.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <string>
#include <string_view>
#include <vector>

namespace {

using Clock = std::chrono::steady_clock;

struct Options {
  std::string host = "127.0.0.1";
  int port = 8000;
  int to = 0;
  std::string mode = "requests";
  int connections = 1;
  double seconds = 5;
  int tokens = 256;
  int pid = 0;
  std::string model = "scripted";
  std::string prompt;
  bool chat = false;
};

[[noreturn]] void fail(const std::string& message) {
  std::fprintf(stderr, "http_load: %s\n", message.c_str());
  std::exit(1);
}

Options parse(int argc, char** argv) {
  Options options;
  for (int i = 1; i < argc; ++i) {
    const std::string_view name = argv[i];
    if (name == "--chat") {
      options.chat = true;
      continue;
    }
    if (++i == argc) fail("no value after " + std::string(name));
    const char* value = argv[i];
    if (name == "--host")
      options.host = value;
    else if (name == "--port")
      options.port = std::atoi(value);
    else if (name == "--to")
      options.to = std::atoi(value);
    else if (name == "--mode")
      options.mode = value;
    else if (name == "--connections")
      options.connections = std::atoi(value);
    else if (name == "--seconds")
      options.seconds = std::atof(value);
    else if (name == "--tokens")
      options.tokens = std::atoi(value);
    else if (name == "--pid")
      options.pid = std::atoi(value);
    else if (name == "--model")
      options.model = value;
    else if (name == "--prompt")
      options.prompt = value;
    else
      fail("unknown option " + std::string(name));
  }
  if (options.prompt.empty())
    options.prompt = options.mode == "hold" || options.mode == "clock" ? options.mode : "Hello";
  return options;
}

std::string make_request(const Options& options) {
  const bool stream = options.mode != "requests";
  std::string body = "{\"model\":\"" + options.model + "\",";
  body += options.chat ? R"("messages":[{"role":"user","content":")" + options.prompt + "\"}]"
                       : "\"prompt\":\"" + options.prompt + "\"";
  body += ",\"max_tokens\":" + std::to_string(stream ? options.tokens : 1) + ",\"temperature\":0,\"ignore_eos\":true";
  body += stream ? ",\"stream\":true}" : "}";
  return std::string("POST /v1/") + (options.chat ? "chat/completions" : "completions") +
         " HTTP/1.1\r\nHost: " + options.host +
         "\r\nContent-Type: application/json\r\nContent-Length: " + std::to_string(body.size()) + "\r\n\r\n" + body;
}

struct Connection {
  int fd = -1;
  Clock::time_point begun;   // of the running request
  Clock::time_point latest;  // event of the running stream
  std::string input;
  bool started = false;  // its first event has come
  int tokens = 0;        // that told their time
  bool over = false;     // of --mode clock: its stream has ended
};

struct Totals {
  std::uint64_t requests = 0;
  std::uint64_t events = 0;
  std::vector<double> times_ms;  // of requests, gaps between events, or delays of tokens
  std::vector<double> first_ms;  // from a stream's request to its first event
};

double ms_between(Clock::time_point from, Clock::time_point to) {
  return std::chrono::duration<double, std::milli>(to - from).count();
}

double percentile(std::vector<double>& values, double share) {
  if (values.empty()) return 0;
  const auto at = static_cast<std::ptrdiff_t>(share * static_cast<double>(values.size() - 1));
  std::nth_element(values.begin(), values.begin() + at, values.end());
  return values[static_cast<std::size_t>(at)];
}

int connect_to(const Options& options) {
  const int fd = ::socket(AF_INET, SOCK_STREAM, 0);
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_port = htons(static_cast<std::uint16_t>(options.port));
  if (fd < 0 || ::inet_pton(AF_INET, options.host.c_str(), &address.sin_addr) != 1 ||
      ::connect(fd, reinterpret_cast<sockaddr*>(&address), sizeof(address)) != 0)
    fail(std::string("cannot connect: ") + std::strerror(errno));
  const int on = 1;
  ::setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof(on));
  return fd;
}

// Never returns.
void relay(const Options& options) {
  std::signal(SIGINT, SIG_DFL);  // which a shell's background process ignores
  const int listener = ::socket(AF_INET, SOCK_STREAM, 0);
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_port = htons(static_cast<std::uint16_t>(options.port));
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  const int on = 1;
  ::setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &on, sizeof(on));
  if (::bind(listener, reinterpret_cast<sockaddr*>(&address), sizeof(address)) != 0 || ::listen(listener, 128) != 0)
    fail(std::string("cannot listen: ") + std::strerror(errno));
  const int epoll = ::epoll_create1(0);
  const auto watch = [epoll](int fd) {
    epoll_event event{};
    event.events = EPOLLIN;
    event.data.fd = fd;
    ::epoll_ctl(epoll, EPOLL_CTL_ADD, fd, &event);
  };
  watch(listener);
  std::vector<int> other(65536, -1);  // by descriptor
  std::vector<char> buffer(65536);
  Options target = options;
  target.port = options.to;
  for (;;) {
    epoll_event event{};
    if (::epoll_wait(epoll, &event, 1, -1) != 1) continue;
    const int fd = event.data.fd;
    if (fd == listener) {
      const int client = ::accept(listener, nullptr, nullptr), server = connect_to(target);
      ::setsockopt(client, IPPROTO_TCP, TCP_NODELAY, &on, sizeof(on));
      other.at(static_cast<std::size_t>(client)) = server;
      other.at(static_cast<std::size_t>(server)) = client;
      watch(client);
      watch(server);
      continue;
    }
    int& peer = other.at(static_cast<std::size_t>(fd));
    if (peer < 0) continue;  // closed by the event before
    const ssize_t n = ::recv(fd, buffer.data(), buffer.size(), 0);
    if (n > 0 && ::send(peer, buffer.data(), static_cast<std::size_t>(n), MSG_NOSIGNAL) == n) continue;
    ::close(fd);
    ::close(peer);
    other.at(static_cast<std::size_t>(peer)) = -1;
    peer = -1;
  }
}

void send_request(Connection& connection, const std::string& request) {
  connection.begun = connection.latest = Clock::now();
  connection.started = false;
  if (::send(connection.fd, request.data(), request.size(), MSG_NOSIGNAL) != static_cast<ssize_t>(request.size()))
    fail("the server closed the connection");
}

void check_status(const Connection& connection) {
  if (connection.input.size() >= 12 && connection.input.compare(9, 3, "200") != 0)
    fail("answer: " + connection.input.substr(0, 600));
}

// True once the answer with its Content-Length is whole; takes it from the input.
bool take_answer(Connection& connection) {
  const std::size_t head_end = connection.input.find("\r\n\r\n");
  if (head_end == std::string::npos) return false;
  check_status(connection);
  const std::size_t at = connection.input.find("Content-Length: ");
  if (at == std::string::npos || at > head_end) fail("an answer without Content-Length");
  const std::size_t whole = head_end + 4 + std::strtoul(connection.input.c_str() + at + 16, nullptr, 10);
  if (connection.input.size() < whole) return false;
  connection.input.erase(0, whole);
  return true;
}

// Counts the events of a stream; true at its end.
bool take_events(Connection& connection, Totals& totals, bool measure) {
  if (!connection.started) check_status(connection);
  std::size_t used = 0;
  for (;;) {
    const std::size_t at = connection.input.find("data: ", used);
    if (at == std::string::npos || at + 7 > connection.input.size()) break;
    if (connection.input[at + 6] == '[') {
      const std::size_t end = connection.input.find("\r\n0\r\n\r\n", at);
      if (end == std::string::npos) break;
      connection.input.erase(0, end + 7);
      return true;
    }
    used = at + 6;
    const auto now = Clock::now();
    if (measure && connection.started) totals.times_ms.push_back(ms_between(connection.latest, now));
    if (measure && !connection.started) totals.first_ms.push_back(ms_between(connection.begun, now));
    connection.latest = now;
    connection.started = true;
    ++totals.events;
  }
  connection.input.erase(0, used);
  return false;
}

// Takes the tokens of --mode clock; true at the end of the stream.
bool take_times(Connection& connection, Totals& totals) {
  const auto now = Clock::now();
  if (!connection.started) {
    check_status(connection);
    connection.started = true;
    totals.first_ms.push_back(ms_between(connection.begun, now));
  }
  std::size_t used = 0;
  for (;;) {
    const std::size_t at = connection.input.find('@', used);
    const std::size_t end = connection.input.find(';', at);
    if (at == std::string::npos || end == std::string::npos) break;
    const Clock::time_point made(std::chrono::nanoseconds(std::atoll(connection.input.c_str() + at + 1)));
    totals.times_ms.push_back(ms_between(made, now));
    ++connection.tokens;
    used = end;
  }
  const bool over = connection.input.find("data: [DONE]", used) != std::string::npos &&
                    connection.input.find("\"finish_reason\":\"") != std::string::npos;
  if (connection.input.find("\"error\"", used) != std::string::npos) fail("answer: " + connection.input.substr(0, 600));
  // What tells the end may come in several reads.
  connection.input.erase(0, std::min(used, connection.input.size()));
  return over;
}

double resident_mb(int pid) {
  std::ifstream status("/proc/" + std::to_string(pid) + "/status");
  for (std::string line; std::getline(status, line);)
    if (line.starts_with("VmRSS:")) return std::atof(line.c_str() + 6) / 1024;
  return -1;
}

}  // namespace

int main(int argc, char** argv) {
  const Options options = parse(argc, argv);
  rlimit limit{};
  if (getrlimit(RLIMIT_NOFILE, &limit) == 0) {
    limit.rlim_cur = limit.rlim_max;
    setrlimit(RLIMIT_NOFILE, &limit);
  }
  if (options.mode == "relay") relay(options);
  const std::string request = make_request(options);
  const double before_mb = options.pid != 0 ? resident_mb(options.pid) : 0;

  const int epoll = ::epoll_create1(0);
  std::vector<Connection> connections(static_cast<std::size_t>(options.connections));
  for (std::size_t i = 0; i < connections.size(); ++i) {
    connections[i].fd = connect_to(options);
    epoll_event event{};
    event.events = EPOLLIN;
    event.data.u64 = i;
    ::epoll_ctl(epoll, EPOLL_CTL_ADD, connections[i].fd, &event);
  }
  Totals totals;
  totals.times_ms.reserve(1 << 20);
  const auto begin = Clock::now();
  for (Connection& connection : connections) send_request(connection, request);

  const bool hold = options.mode == "hold";
  const bool stream = options.mode == "stream";
  const bool clock = options.mode == "clock";
  if (!hold && !stream && !clock && options.mode != "requests") fail("unknown mode " + options.mode);
  // The first fifth warms up and is not counted.
  const auto warm =
      begin + std::chrono::duration_cast<Clock::duration>(std::chrono::duration<double>(options.seconds / 5));
  auto end = begin + std::chrono::duration_cast<Clock::duration>(std::chrono::duration<double>(options.seconds));
  bool measuring = false;
  auto measured_from = begin;
  std::size_t open_streams = 0;
  std::vector<epoll_event> events(1024);
  char buffer[65536];
  for (;;) {
    const auto now = Clock::now();
    if (now >= end) break;
    if (!clock && !measuring && now >= warm) {
      measuring = true;
      measured_from = now;
      totals.requests = totals.events = 0;
      totals.times_ms.clear();
      totals.first_ms.clear();
    }
    const int ready = ::epoll_wait(epoll, events.data(), static_cast<int>(events.size()), 100);
    for (int i = 0; i < ready; ++i) {
      Connection& connection = connections[events[static_cast<std::size_t>(i)].data.u64];
      const ssize_t n = ::recv(connection.fd, buffer, sizeof(buffer), 0);
      if (n <= 0) fail("the server closed a connection");
      if (hold && connection.started) continue;  // read, and not kept
      connection.input.append(buffer, static_cast<std::size_t>(n));
      if (hold) {
        if (!connection.started && connection.input.find("\r\n\r\n") != std::string::npos) {
          check_status(connection);
          connection.started = true;
          // Once all stream, a moment for the server to settle.
          if (++open_streams == connections.size()) end = std::min(end, Clock::now() + std::chrono::milliseconds(500));
        }
      } else if (clock) {
        if (!connection.over && take_times(connection, totals)) {
          connection.over = true;
          if (++open_streams == connections.size()) end = Clock::now();
        }
      } else if (stream) {
        if (take_events(connection, totals, measuring)) {
          ++totals.requests;
          send_request(connection, request);
        }
      } else {
        while (take_answer(connection)) {
          ++totals.requests;
          totals.times_ms.push_back(ms_between(connection.begun, Clock::now()));
          send_request(connection, request);
        }
      }
    }
  }
  const double seconds = std::chrono::duration<double>(Clock::now() - measured_from).count();
  if (hold) {
    std::printf("%zu open requests, %zu of them streaming", connections.size(), open_streams);
    if (options.pid != 0) {
      const double after_mb = resident_mb(options.pid);
      std::printf(": resident %.1f MB (before %.1f MB, %.2f KB each)", after_mb, before_mb,
                  (after_mb - before_mb) * 1024 / static_cast<double>(connections.size()));
    }
    std::printf("\n");
  } else if (clock) {
    std::size_t whole = 0;
    for (const Connection& connection : connections)
      if (connection.over && connection.tokens == options.tokens) ++whole;
    std::printf(
        "%zu of %zu streams of %d tokens came whole in %.2f s (%.0f tokens/s); first event p50 %.3f ms; a token "
        "arrived p50 %.3f ms, p99 %.3f ms after it was made\n",
        whole, connections.size(), options.tokens, seconds, static_cast<double>(totals.times_ms.size()) / seconds,
        percentile(totals.first_ms, 0.5), percentile(totals.times_ms, 0.5), percentile(totals.times_ms, 0.99));
    if (whole != connections.size()) return 1;
  } else if (stream) {
    std::printf("%d streams of %d tokens: %.0f events/s, first event p50 %.3f ms, gap p50 %.3f ms, p99 %.3f ms\n",
                options.connections, options.tokens, static_cast<double>(totals.events) / seconds,
                percentile(totals.first_ms, 0.5), percentile(totals.times_ms, 0.5), percentile(totals.times_ms, 0.99));
  } else {
    std::printf("concurrency %d: %.0f requests/s, p50 %.3f ms, p99 %.3f ms\n", options.connections,
                static_cast<double>(totals.requests) / seconds, percentile(totals.times_ms, 0.5),
                percentile(totals.times_ms, 0.99));
  }
  return 0;
}
