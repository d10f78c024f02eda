#include "config/keys.h"

#include <algorithm>
#include <cctype>
#include <charconv>
#include <cstdio>
#include <iterator>
#include <system_error>

#include "base/json_text.h"
#include "base/units.h"
#include "base/utf8.h"

namespace xgen::config {
namespace {

bool printable(std::string_view text) {
  return is_valid_utf8(text) &&
         std::none_of(text.begin(), text.end(), [](unsigned char c) { return c < 0x20 || c == 0x7f; });
}

}  // namespace

Fault expected(std::string what, const YAML::Node& node) {
  what = "expected " + what;
  if (node.IsScalar()) return what + ", got '" + node.Scalar().substr(0, 100) + "'";
  if (node.IsSequence()) return what + (node.size() == 0 ? ", got an empty list" : ", got a list");
  if (node.IsMap()) return what + ", got a mapping";
  return what + ", got nothing";
}

std::string bytes_text(std::uint64_t value) {
  for (const auto& [unit, name] : {std::pair{30, "GiB"}, {20, "MiB"}, {10, "KiB"}}) {
    if (value != 0 && value % (std::uint64_t{1} << unit) == 0) return std::to_string(value >> unit) + name;
  }
  return std::to_string(value);
}

// YAML reads JSON's strings and lists as they are.
std::string in_quotes(std::string_view text) {
  std::string out;
  append_json_string(out, text);
  return out;
}

std::string lower_case(std::string text) {
  std::transform(text.begin(), text.end(), text.begin(), [](unsigned char c) { return std::tolower(c); });
  return text;
}

bool is_name(std::string_view text) {
  return !text.empty() && text.size() <= 200 && printable(text) && text.find(' ') == std::string_view::npos;
}

namespace {

constexpr std::size_t kMaxFallbacks = 16;  // of one model
constexpr milliseconds kShortest{100};     // of time-outs that would refuse everybody if they were 0

std::string duration_text(milliseconds value) {
  const auto ms = value.count();
  if (ms % 60'000 == 0 && ms != 0) return std::to_string(ms / 60'000) + "m";
  if (ms % 1000 == 0) return std::to_string(ms / 1000) + "s";
  return std::to_string(ms) + "ms";
}

std::string in_brackets(const std::vector<std::string>& list) {
  std::string out;
  for (const std::string& each : list) out += (out.empty() ? "" : ", ") + in_quotes(each);
  return "[" + out + "]";
}

Fault read_name(std::string& name, const YAML::Node& node) {
  if (!node.IsScalar() || !is_name(node.Scalar())) return expected(std::string(kNameShape), node);
  name = node.Scalar();
  return {};
}
// A bad one leaves the list as it is.
Fault append_name(std::vector<std::string>& names, const YAML::Node& node) {
  std::string name;
  if (Fault fault = read_name(name, node)) return fault;
  names.push_back(std::move(name));
  return {};
}

// Key::yaml of a field that may be unset: nothing then.
template <class S, class T, class Text>
std::function<std::string(const S&)> set_only(T S::*field, Text text) {
  return [=](const S& section) -> std::string {
    if constexpr (requires { (section.*field).has_value(); }) {
      return (section.*field).has_value() ? text(*(section.*field)) : std::string();
    } else {
      return text(section.*field);
    }
  };
}

template <class S, class T>
Key<S> integer(std::string_view name, T S::*field, std::int64_t low, std::int64_t high, std::string_view help) {
  const std::string range = "an integer from " + std::to_string(low) + " to " + std::to_string(high);
  return {name,
          range,
          help,
          [=](S& section, const YAML::Node& node) -> Fault {
            std::int64_t value = 0;
            if (!node.IsScalar()) return expected(range, node);
            const std::string& text = node.Scalar();
            const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
            if (error != std::errc{} || end != text.data() + text.size() || value < low || value > high) {
              return expected(range, node);
            }
            section.*field = static_cast<int>(value);
            return {};
          },
          [=](const S& section) -> std::string {
            if constexpr (requires { (section.*field).has_value(); }) {
              return (section.*field).has_value() ? std::to_string(*(section.*field)) : "planned";
            } else {
              return std::to_string(section.*field);
            }
          },
          {},
          set_only(field, [](auto value) { return std::to_string(value); })};
}

template <class S>
Key<S> duration(std::string_view name, milliseconds S::*field, milliseconds low, std::string_view help) {
  return {name, "a duration", help,
          [=](S& section, const YAML::Node& node) -> Fault {
            if (!node.IsScalar()) return expected("a duration such as 250ms, 30s or 10m", node);
            auto value = parse_duration(node.Scalar());
            if (!value) return value.error().message;
            if (*value < low) return expected("at least " + duration_text(low), node);
            section.*field = *value;
            return {};
          },
          [=](const S& section) { return duration_text(section.*field); }};
}

template <class S, class T>
Key<S> size(std::string_view name, T S::*field, std::uint64_t low, std::string_view help) {
  return {name,
          "a size",
          help,
          [=](S& section, const YAML::Node& node) -> Fault {
            if (!node.IsScalar()) return expected("a size such as 512MiB or 2GiB", node);
            auto value = parse_bytes(node.Scalar());
            if (!value) return value.error().message;
            if (*value < low) return expected("at least " + bytes_text(low), node);
            section.*field = *value;
            return {};
          },
          [=](const S& section) -> std::string {
            if constexpr (requires { (section.*field).has_value(); }) {
              return (section.*field).has_value() ? bytes_text(*(section.*field)) : "planned";
            } else {
              return bytes_text(section.*field);
            }
          },
          {},
          set_only(field, bytes_text)};
}

template <class S>
Key<S> boolean(std::string_view name, bool S::*field, std::string_view help) {
  return {name, "true or false", help,
          [=](S& section, const YAML::Node& node) -> Fault {
            if (!node.IsScalar() || (node.Scalar() != "true" && node.Scalar() != "false")) {
              return expected("true or false", node);
            }
            section.*field = node.Scalar() == "true";
            return {};
          },
          [=](const S& section) -> std::string { return section.*field ? "true" : "false"; }};
}

// A value that must be one of a list. `set` receives its index.
template <class S>
Key<S> choice(std::string_view name, const std::vector<std::string_view>& names,
              std::function<void(S&, std::size_t)> set, std::function<std::size_t(const S&)> get,
              std::string_view help) {
  std::string list;
  for (const std::string_view each : names) list.append(list.empty() ? "" : " | ").append(each);
  return {name, list, help,
          [=](S& section, const YAML::Node& node) -> Fault {
            const auto it = node.IsScalar() ? std::find(names.begin(), names.end(), node.Scalar()) : names.end();
            if (it == names.end())
              return expected(names.size() == 1 ? list + " (the only value in this version)" : list, node);
            if (set) set(section, static_cast<std::size_t>(it - names.begin()));
            return {};
          },
          [=](const S& section) { return std::string(names[get ? get(section) : 0]); }};
}

template <class S>
Key<S> choice(std::string_view name, std::vector<std::string_view> names, std::string S::*field,
              std::string_view help) {
  return choice<S>(
      name, names, [=](S& section, std::size_t i) { section.*field = names[i]; },
      [=](const S& section) {
        return static_cast<std::size_t>(std::find(names.begin(), names.end(), section.*field) - names.begin());
      },
      help);
}

template <class S>
Key<S> text(std::string_view name, std::string S::*field, std::string_view type, std::string_view help) {
  return {name,
          std::string(type),
          help,
          [=](S& section, const YAML::Node& node) -> Fault {
            if (!node.IsScalar() || node.Scalar().empty() || node.Scalar().size() > 4096 || !printable(node.Scalar())) {
              return expected(std::string(type), node);
            }
            section.*field = node.Scalar();
            return {};
          },
          [=](const S& section) { return (section.*field).empty() ? std::string("required") : section.*field; },
          {},
          [=](const S& section) { return (section.*field).empty() ? std::string() : in_quotes(section.*field); }};
}

template <class S>
Key<S> file(std::string_view name, std::string S::*field, std::string_view help) {
  Key<S> key = text(name, field, "a path", help);
  key.show = [](const S&) { return std::string("none"); };
  return key;
}

Fault read_memory_limit(MemoryLimit& limit, const YAML::Node& node) {
  constexpr std::string_view kWhat = "a share such as 80% or a size such as 8GiB";
  if (!node.IsScalar()) return expected(std::string(kWhat), node);
  const std::string& value = node.Scalar();
  if (!value.empty() && value.back() == '%') {
    double percent = 0;
    const char* const last = value.data() + value.size() - 1;
    const auto [end, error] = std::from_chars(value.data(), last, percent, std::chars_format::fixed);
    if (error != std::errc{} || end != last || !(percent > 0 && percent <= 100))
      return expected(std::string(kWhat), node);
    limit = {percent / 100, 0};
    return {};
  }
  auto bytes = parse_bytes(value);
  if (!bytes || *bytes == 0) return expected(std::string(kWhat), node);
  limit = {0, *bytes};
  return {};
}

std::string percent_text(double share) {
  char text[32];
  std::snprintf(text, sizeof(text), "%.10g%%", share * 100);
  return text;
}

// A list whose entries `read_entry` reads.
template <class S>
Key<S> list(std::string_view name, std::size_t most, std::string_view what, std::string_view help,
            std::function<Fault(S&, const YAML::Node&)> read_entry,
            std::function<std::vector<std::string>(const S&)> entries) {
  const std::string type = "a list of " + std::string(what);
  return {name,
          type,
          help,
          [=](S&, const YAML::Node& node) -> Fault {
            if (!node.IsSequence() || node.size() > most)
              return expected("a list of at most " + std::to_string(most) + " " + std::string(what), node);
            return {};
          },
          [](const S&) { return std::string("none"); },
          [=](S& section, const YAML::Node&, const YAML::Node& entry) { return read_entry(section, entry); },
          [=](const S& section) { return in_brackets(entries(section)); }};
}

Fault read_proxy(Server& server, const YAML::Node& node) {
  const auto range = node.IsScalar() ? IpRange::parse(node.Scalar()) : std::nullopt;
  if (!range) return expected("an address or a range such as 10.0.0.0/8 or fd00::/8", node);
  server.trusted_proxies.push_back(*range);
  return {};
}

Fault read_origin(Server& server, const YAML::Node& node) {
  const std::string text = node.IsScalar() ? node.Scalar() : "";
  const std::size_t scheme = text.find("://");
  const bool origin = scheme != std::string::npos && scheme > 0 && text.size() > scheme + 3 && text.size() <= 256 &&
                      std::all_of(text.begin(), text.end(),
                                  [](unsigned char c) { return c > 0x20 && c < 0x7f && std::isupper(c) == 0; }) &&
                      text.find_first_of("/?#@*,", scheme + 3) == std::string::npos;
  if (text != "*" && !origin)
    return expected("\"*\" or an origin as browsers send it, such as https://app.example.com (no path, lower case)",
                    node);
  server.cors_origins.push_back(text);
  return {};
}

// These the client makes: with others, or twice, the request would be another.
constexpr std::string_view kHttpHeaders[] = {
    "connection", "content-encoding", "content-length",    "content-type", "expect",  "host",
    "keep-alive", "proxy-connection", "transfer-encoding", "te",           "trailer", "upgrade"};

Fault read_header(Remote& remote, const YAML::Node& key, const YAML::Node& value) {
  if (!key.IsScalar()) return expected("a header's name", key);
  const std::string& name = key.Scalar();
  const bool token = !name.empty() && std::all_of(name.begin(), name.end(), [](unsigned char c) {
    return std::isalnum(c) != 0 ||
           std::string_view("!#$%&'*+-.^_`|~").find(static_cast<char>(c)) != std::string_view::npos;
  });
  if (!token) return "'" + name + "' is no header name";
  const std::string lower = lower_case(name);
  if (std::find(std::begin(kHttpHeaders), std::end(kHttpHeaders), lower) != std::end(kHttpHeaders))
    return "'" + name + "' is HTTP's own and cannot be set";
  if (!value.IsScalar() || !printable(value.Scalar())) return "'" + name + "': " + *expected("a text", value);
  if (std::any_of(remote.headers.begin(), remote.headers.end(),
                  [&](const auto& each) { return lower_case(each.first) == lower; }))
    return "'" + name + "' is given twice";
  remote.headers.emplace_back(name, value.Scalar());
  return {};
}

Key<ModelSettings> engine_key() {
  using S = ModelSettings;
  Key<S> key = choice("engine", {"native", "openai", "tgi", "triton"}, &S::engine,
                      "What computes the model: this process, or another server (see below): one that speaks OpenAI's "
                      "/v1, text-generation-inference, or Triton with TensorRT-LLM.");
  key.read = [read = key.read](S& settings, const YAML::Node& node) -> Fault {
    Fault fault = read(settings, node);
    for (const char* each : {"vllm", "sglang", "trtllm", "trtllm-serve", "llamacpp", "llama.cpp", "llama-server",
                             "ollama", "lmdeploy", "xgen", "xgen-model"})
      if (fault && node.IsScalar() && lower_case(node.Scalar()) == each)
        *fault += "; it speaks OpenAI's /v1, which is engine openai";
    return fault;
  };
  return key;
}

constexpr std::size_t kMaxUrls = 256;

}  // namespace

const std::vector<Key<Server>>& server_keys() {
  static const std::vector<Key<Server>> keys = {
      text("host", &Server::host, "an address", "Address to listen on."),
      integer("port", &Server::port, 0, 65535, "TCP port; 0 takes any free one."),
      integer("threads", &Server::threads, 1, 64, "Threads that serve HTTP connections."),
      integer("max_connections", &Server::max_connections, 1, 1'000'000,
              "Open connections. For one more the one that has waited longest for its client is closed: for a request, "
              "or else for the rest of one. If all are being answered, it is answered 503, or closed without a word "
              "when there are many of them. Lowered at the start where the limit of open files is too low."),
      size("max_body", &Server::max_body, 1024,
           "Largest request body; larger ones are answered 413. All bodies together may have 16 times as much, and "
           "256MiB at least, from their arrival until their answers are complete; more are answered 503. The first "
           "64KiB of each do not count."),
      size("max_headers", &Server::max_headers, 1024, "Largest request head; larger ones are answered 431."),
      size("max_unsent", &Server::max_unsent, 1 << 20,
           "Answers that wait for slow clients, all together; beyond it the largest is cut off. Up to 64KiB of each "
           "stream that waits for its client do not count."),
      duration("header_timeout", &Server::header_timeout, kShortest, "Time for a request's head to arrive, else 408."),
      duration("body_timeout", &Server::body_timeout, kShortest, "Time for a request's body to arrive, else 408."),
      duration("write_timeout", &Server::write_timeout, kShortest,
               "A client that takes no bytes for so long is disconnected."),
      duration("idle_timeout", &Server::idle_timeout, kShortest,
               "A kept-alive connection without a request is closed after this."),
      duration("request_timeout", &Server::request_timeout, milliseconds(0),
               "Longest time for one request, queueing included, else 408; 0 sets no limit."),
      duration(
          "stall_limit", &Server::stall_limit, milliseconds(1000),
          "An engine's step that runs for longer hangs: `/health/live` answers 503, and systemd's watchdog is told "
          "nothing more, so that the process is restarted."),
      duration("drain_delay", &Server::drain_delay, milliseconds(0),
               "After SIGTERM: still accept requests for so long, not ready, so that load balancers can notice."),
      duration("drain_timeout", &Server::drain_timeout, milliseconds(0),
               "After drain_delay: time for running requests to finish; those that run on end with an error."),
      choice("operators", {"local", "gateway"}, &Server::operators,
             "Who may load and unload models (`/admin`, `/api/management`, `/api/inference/load`): requests from this "
             "machine, or also those with the header `x-user-admin: true` that come from one of `trusted_proxies`, "
             "which gateway needs."),
      list<Server>("trusted_proxies", 1000, "addresses and ranges",
                   "Proxies and gateways whose word counts (see security.md): `x-forwarded-for` and `forwarded` on the "
                   "client's address, for the log and for who is on this machine; `x-user-id` and `x-user-admin`. "
                   "From all others these headers change nothing.",
                   read_proxy,
                   [](const Server& s) {
                     std::vector<std::string> out;
                     for (const IpRange& each : s.trusted_proxies) out.push_back(each.text());
                     return out;
                   }),
      {"admin_port",
       "an integer from 0 to 65535",
       "A port of their own for `/admin`, management and `/metrics`, which then answer there alone, with the same TLS "
       "and API keys; health answers on both. 0 takes any free one.",
       [](Server& s, const YAML::Node& node) { return integer("", &Server::admin_port, 0, 65535, "").read(s, node); },
       [](const Server& s) { return s.admin_port ? std::to_string(*s.admin_port) : std::string("none"); },
       {},
       set_only(&Server::admin_port, [](int port) { return std::to_string(port); })},
      text("admin_host", &Server::admin_host, "an address",
           "Address to listen on with admin_port; another than this machine's calls for API keys, since without them "
           "operators are on this machine."),
      list<Server>("cors_origins", 1000, "origins",
                   "Web pages of these origins may call the models from a browser (CORS); \"*\" lets every page. "
                   "Operators' routes and `/metrics` are never among it.",
                   read_origin, [](const Server& s) { return s.cors_origins; }),
      file("api_keys_file", &Server::api_keys_file,
           "Who may send requests: a file of API keys (see below and api-keys.md), relative to this one. Read again "
           "when it changes. Without it everybody may, and operators are those on this machine."),
      file("tls_cert_file", &Server::tls_cert_file,
           "Speak TLS (https): a PEM file with the server's certificate and, after it, those between it and a root, "
           "relative to this one. Read again when it changes, for new connections (see security.md)."),
      file("tls_key_file", &Server::tls_key_file, "The certificate's private key, in PEM, without a passphrase."),
      file("tls_client_ca_file", &Server::tls_client_ca_file,
           "Clients show a certificate that one of those in this PEM file has signed."),
      choice("tls_client_auth", {"required", "optional"}, &Server::tls_client_auth,
             "With tls_client_ca_file: whether clients without a certificate are let in; those with a wrong one never "
             "are."),
      choice("tls_min_version", {"1.2", "1.3"}, &Server::tls_min_version, "Oldest version of TLS that is spoken."),
      choice("unknown_fields", {"reject", "warn"}, &Server::unknown_fields,
             "What to do with request fields that no API defines: refuse with 400, or log and ignore."),
  };
  return keys;
}

const std::vector<Key<Log>>& log_keys() {
  static const std::vector<Key<Log>> keys = {
      choice<Log>(
          "level", {"debug", "info", "warn", "error", "off"},
          [](Log& l, std::size_t i) { l.level = static_cast<log::Level>(i); },
          [](const Log& l) { return static_cast<std::size_t>(l.level); }, "Least level that is written (to stderr)."),
      choice<Log>(
          "format", {"text", "json"}, [](Log& l, std::size_t i) { l.format = static_cast<log::Format>(i); },
          [](const Log& l) { return static_cast<std::size_t>(l.format); },
          "Lines for people, or one JSON object a line."),
      boolean(
          "content", &Log::content,
          "Also log what is asked and answered, up to 32KiB each, at level info: for tracking down faults; it holds "
          "whatever people write."),
  };
  return keys;
}

const std::vector<Key<Memory>>& memory_keys() {
  static const std::vector<Key<Memory>> keys = {
      {"host", "a share or a size",
       "Memory for all models together (weights, KV cache, workspace): a share of the smaller of RAM and the cgroup's "
       "limit, or a size.",
       [](Memory& m, const YAML::Node& node) { return read_memory_limit(m.host, node); },
       [](const Memory& m) { return m.host.bytes != 0 ? bytes_text(m.host.bytes) : percent_text(m.host.share); }},
  };
  return keys;
}

const std::vector<Key<Compute>>& compute_keys() {
  static const std::vector<Key<Compute>> keys = {
      {"threads", "auto, or an integer from 1 to 1024",
       "Compute threads shared by all models; auto is one per usable CPU.",
       [](Compute& c, const YAML::Node& node) -> Fault {
         if (node.IsScalar() && node.Scalar() == "auto") {
           c.threads = 0;
           return {};
         }
         Fault fault = integer("", &Compute::threads, 1, 1024, "").read(c, node);
         return fault ? expected("auto, or an integer from 1 to 1024", node) : fault;
       },
       [](const Compute& c) { return c.threads == 0 ? std::string("auto") : std::to_string(c.threads); }},
      choice("kernels", {"auto", "scalar", "avx2", "avx512", "amx"}, &Compute::kernels,
             "Instruction set of the compute kernels; auto takes the best that the CPU has. avx512 (with VNNI) and amx "
             "round activations to 8 bits where the weights are quantised, as llama.cpp does; scalar and avx2 do not."),
  };
  return keys;
}

const std::vector<Key<Sources>>& sources_keys() {
  static const std::vector<Key<Sources>> keys = {
      {"cache",
       "a folder",
       "Where s3:// models are kept (a relative path in models.yaml: from its folder); hf:// models are in the cache "
       "that they share with Python (HF_HOME, HF_HUB_CACHE).",
       text("", &Sources::cache, "a folder", "").read,
       [](const Sources& s) { return s.cache.empty() ? std::string("~/.cache/xgen-model") : s.cache; },
       {},
       text("", &Sources::cache, "a folder", "").yaml},
      integer("connections", &Sources::connections, 1, 64, "Parts of one file that are downloaded at the same time."),
      duration("timeout", &Sources::timeout, kShortest, "A connection that brings nothing for so long is tried again."),
      integer("retries", &Sources::retries, 0, 100,
              "Failures in a row, with less than 64KiB of progress each, before a download is given up."),
  };
  return keys;
}

const std::vector<Key<Tracing>>& tracing_keys() {
  static const std::vector<Key<Tracing>> keys = {
      {"endpoint",
       "a URL",
       "An OpenTelemetry collector, which takes OTLP over HTTP: `http://otel-collector:4318`; `/v1/traces` is added "
       "where "
       "the URL has no path. Without it no spans are sent.",
       text("", &Tracing::endpoint, "a URL such as http://otel-collector:4318", "").read,
       [](const Tracing& t) { return t.endpoint.empty() ? std::string("none") : t.endpoint; },
       {},
       text("", &Tracing::endpoint, "", "").yaml},
      {"sample", "a number from 0 to 1",
       "Share of the requests for inference that are traced, of those whose caller has not decided it (traceparent).",
       [](Tracing& t, const YAML::Node& node) -> Fault {
         constexpr std::string_view kWhat = "a number from 0 to 1";
         if (!node.IsScalar()) return expected(std::string(kWhat), node);
         const std::string& value = node.Scalar();
         double share = 0;
         const auto [end, error] = std::from_chars(value.data(), value.data() + value.size(), share);
         if (error != std::errc{} || end != value.data() + value.size() || !(share >= 0 && share <= 1))
           return expected(std::string(kWhat), node);
         t.sample = share;
         return {};
       },
       [](const Tracing& t) {
         char text[32];
         return std::string(text, std::to_chars(text, text + sizeof(text), t.sample).ptr);
       }},
      file("ca_file", &Tracing::ca_file,
           "Certificates (PEM) that the collector's is checked against, relative to this file; by default the "
           "system's."),
  };
  return keys;
}

const std::vector<Key<ModelSettings>>& settings_keys() {
  using S = ModelSettings;
  static const std::vector<Key<S>> keys = {
      integer("max_model_len", &S::max_model_len, 1, 100'000'000,
              "Most tokens of prompt and answer together; by default what the model and the memory allow."),
      integer("max_num_seqs", &S::max_num_seqs, 1, 65536, "Sequences that are computed at the same time."),
      integer("max_num_batched_tokens", &S::max_num_batched_tokens, 1, 65536,
              "Tokens of one engine step; long prompts are computed in chunks of this size. Raised to max_num_seqs "
              "where it "
              "is less, so that every sequence can move."),
      integer("max_waiting", &S::max_waiting, 1, 1'000'000, "Requests that may wait; further ones are answered 429."),
      size("kv_cache", &S::kv_cache, 1 << 16,
           "Memory for keys and values; by default planned within the memory budget."),
      choice("kv_cache_dtype", {"auto", "f32", "f16", "bf16"}, &S::kv_cache_dtype, "Number format of keys and values."),
      boolean("prefix_caching", &S::prefix_caching,
              "Keep the KV blocks of finished prompts and reuse them for equal prefixes."),
      engine_key(),
      choice<S>("device", {"auto", "cpu"}, nullptr, nullptr, "Where it is computed."),
      choice<S>("quantization", {"none"}, nullptr, nullptr,
                "Conversion of the weights while loading; GGUF files keep their own format."),
      choice<S>(
          "load", {"startup", "on_demand"}, [](S& s, std::size_t i) { s.on_demand = i == 1; },
          [](const S& s) { return std::size_t{s.on_demand}; },
          "When it is loaded: before the server is ready, or by the first request for it, which waits."),
      duration("idle_unload", &S::idle_unload, milliseconds(0),
               "It is unloaded when no request has used it for so long, and loaded again by the next; 0 keeps it."),
      boolean("pin", &S::pin, "Never unload it to make room for another model."),
      integer(
          "weight", &S::weight, 1, 1000,
          "Its share of the compute threads while other models compute as well: one of weight 3 gets three times as "
          "much time as one of weight 1."),
  };
  return keys;
}

const std::vector<Key<Model>>& model_keys() {
  static const std::vector<Key<Model>> keys = {
      {"name",
       "a name",
       "What clients put into `model`.",
       [](Model& model, const YAML::Node& node) { return read_name(model.name, node); },
       [](const Model&) { return std::string("required"); },
       {},
       [](const Model& model) { return in_quotes(model.name); }},
      {"aliases", "a list of names", "Further names for the same model.",
       [](Model&, const YAML::Node& node) -> Fault {
         if (!node.IsSequence() || node.size() > 64) return expected("a list of at most 64 names", node);
         return {};
       },
       [](const Model&) { return std::string("none"); },
       [](Model& model, const YAML::Node&, const YAML::Node& name) { return append_name(model.aliases, name); },
       [](const Model& model) { return in_brackets(model.aliases); }},
      {"fallbacks", "a list of names",
       "Models of this list that a request goes to, one after the other, when this one fails it before the first token "
       "with 503, 429 or 500; see several-models.md.",
       [](Model&, const YAML::Node& node) -> Fault {
         const std::string what = "a list of at most " + std::to_string(kMaxFallbacks) + " names of models";
         if (!node.IsSequence() || node.size() > kMaxFallbacks) return expected(what, node);
         return {};
       },
       [](const Model&) { return std::string("none"); },
       [](Model& model, const YAML::Node&, const YAML::Node& name) { return append_name(model.fallbacks, name); },
       [](const Model& model) { return in_brackets(model.fallbacks); }},
      text("source", &Model::source, "a path or an address",
           "A folder with config.json, safetensors and tokenizer files, a .gguf file (the first part of a split one), "
           "`hf://ORG/REPO[@REVISION][/FILE]`, `s3://BUCKET/PREFIX` (see model-sources.md), or `builtin:xgen-demo`."),
  };
  return keys;
}

const std::vector<Key<Remote>>& remote_keys() {
  static const std::vector<Key<Remote>> keys = [] {
    std::vector<Key<Remote>> made = {
        {"urls", "a list of URLs",
         "Where the engine answers: `http://vllm-0:8000/v1`, with its /v1 if the engine is openai; `http://tgi:8080`. "
         "Several are equal replicas of the model, among which requests are spread.",
         [](Remote&, const YAML::Node& node) -> Fault {
           const std::string what =
               "a list of 1 to " + std::to_string(kMaxUrls) + " URLs such as http://vllm-0:8000/v1";
           if (!node.IsSequence() || node.size() == 0 || node.size() > kMaxUrls) return expected(what, node);
           return {};
         },
         [](const Remote&) { return std::string("required"); },
         [](Remote& remote, const YAML::Node&, const YAML::Node& each) -> Fault {
           const bool url = each.IsScalar() && printable(each.Scalar()) && each.Scalar().size() <= 4096 &&
                            (each.Scalar().starts_with("http://") || each.Scalar().starts_with("https://"));
           if (!url) return expected("a URL such as http://vllm-0:8000/v1", each);
           const auto without_slash = [](std::string text) {
             while (text.ends_with('/')) text.pop_back();
             return text;
           };
           const std::string same = without_slash(each.Scalar());
           if (std::any_of(remote.urls.begin(), remote.urls.end(),
                           [&](const std::string& other) { return without_slash(other) == same; }))
             return "the URL " + each.Scalar() + " is listed twice";
           remote.urls.push_back(each.Scalar());
           return {};
         },
         [](const Remote& remote) { return in_brackets(remote.urls); }},
        boolean("replica_per_address", &Remote::replica_per_address,
                "Every address that a URL's host has is a replica of its own (a headless Service of Kubernetes); the "
                "names are looked up again every `health_interval`. Otherwise a URL is one replica."),
        {"model",
         "a name",
         "What the engine calls the model, where that is another name (tgi: its LoRA adapter, if any; "
         "triton: often ensemble or tensorrt_llm_bls).",
         [](Remote& remote, const YAML::Node& node) { return read_name(remote.model, node); },
         [](const Remote&) { return std::string("the model's name"); },
         {},
         [](const Remote& remote) { return remote.model.empty() ? std::string() : in_quotes(remote.model); }},
        choice("dialect", {"auto", "openai", "vllm", "sglang", "trtllm", "llamacpp", "xgen"}, &Remote::dialect,
               "Which engine speaks OpenAI's /v1, so that what it does not know is refused by name; auto asks its "
               "/v1/models. Of engine openai alone."),
        file("tokenizer", &Remote::tokenizer,
             "The model's tokenizer here: a folder, tokenizer.json or a .gguf file, relative to this file. Its chat "
             "template makes the text that the engine takes instead of messages. Required for engine triton, and only "
             "there."),
        file(
            "api_key_file", &Remote::api_key_file,
            "A file with the key that is sent to the engine (as `Authorization: Bearer`). Read again when it changes."),
        {"headers", "a mapping", "Further headers of every request to the engine.",
         [](Remote&, const YAML::Node& node) -> Fault {
           if (!node.IsMap() || node.size() > 64)
             return expected("a mapping of at most 64 header names to values", node);
           return {};
         },
         [](const Remote&) { return std::string("none"); }, read_header,
         [](const Remote& remote) {
           std::string out;  // a value may be a secret
           for (const auto& each : remote.headers)
             out += (out.empty() ? "" : ", ") + in_quotes(each.first) + ": \"hidden\"";
           return "{" + out + "}";
         }},
        file("ca_file", &Remote::ca_file,
             "Certificates (PEM) that are trusted instead of the system's, for https. Read again when it changes."),
        duration("connect_timeout", &Remote::connect_timeout, kShortest,
                 "Time to find and reach the engine, else 503. TLS included."),
        duration("first_byte_timeout", &Remote::first_byte_timeout, kShortest,
                 "Time for the engine to begin its answer (it may queue, and reads the prompt), else 503."),
        duration("idle_timeout", &Remote::idle_timeout, kShortest,
                 "Longest pause inside the engine's answer before it counts as broken."),
        duration("health_interval", &Remote::health_interval, milliseconds(0),
                 "How often the engine is asked whether it is well; 0 never asks."),
        choice("balance", {"prefix", "least_loaded", "round_robin"}, &Remote::balance,
               "Which of several replicas takes a request: the one with the least work before it, where what it has of "
               "the prompt in its prefix cache counts as done; the one with the least work; or each in turn."),
        integer("max_attempts", &Remote::max_attempts, 1, 64,
                "Replicas that one request may be sent to: the next, if one fails before the first token."),
        integer("max_requests", &Remote::max_requests, 1, 1'000'000,
                "Requests that run there at the same time; further ones are answered 429."),
    };
    return made;
  }();
  return keys;
}

const std::vector<Key<ApiKey>>& api_key_keys() {
  constexpr std::int64_t kMost = 1'000'000'000;
  static const std::vector<std::string_view> scopes = {"inference", "metrics", "admin"};
  static const std::vector<Key<ApiKey>> keys = {
      {"name", "a name", "Whose key it is: in the log, and in the answers to those who send too much.",
       [](ApiKey& key, const YAML::Node& node) { return read_name(key.name, node); },
       [](const ApiKey&) { return std::string("required"); }},
      {"sha256", "64 hexadecimal digits", "SHA-256 of the key, as sha256sum prints it (see api-keys.md).",
       [](ApiKey& key, const YAML::Node& node) -> Fault {
         // What stands here may be a key by mistake: it is not repeated.
         const bool digest = node.IsScalar() && node.Scalar().size() == 2 * key.sha256.size() &&
                             node.Scalar().find_first_not_of("0123456789abcdefABCDEF") == std::string::npos;
         if (!digest) return "expected the 64 hexadecimal digits that sha256sum prints of the key";
         for (std::size_t i = 0; i < key.sha256.size(); ++i)
           std::from_chars(node.Scalar().data() + 2 * i, node.Scalar().data() + 2 * i + 2, key.sha256[i], 16);
         return {};
       },
       [](const ApiKey&) { return std::string("required"); }},
      {"scopes", "a list",
       "What it is good for: inference (the models), metrics (`/metrics`), admin (operators' routes).",
       [](ApiKey& key, const YAML::Node& node) -> Fault {
         key.scopes.clear();
         if (!node.IsSequence() || node.size() == 0) return expected("a list of inference, metrics, admin", node);
         return {};
       },
       [](const ApiKey&) { return std::string("[inference]"); },
       [](ApiKey& key, const YAML::Node&, const YAML::Node& scope) -> Fault {
         if (!scope.IsScalar() || std::find(scopes.begin(), scopes.end(), scope.Scalar()) == scopes.end())
           return expected("inference, metrics or admin", scope);
         key.scopes.push_back(scope.Scalar());
         return {};
       }},
      integer("requests_per_minute", &ApiKey::requests_per_minute, 0, kMost,
              "Most requests a minute, else 429; 0 sets no limit."),
      integer("tokens_per_minute", &ApiKey::tokens_per_minute, 0, kMost,
              "Most tokens a minute, of prompts and answers, else 429; 0 sets no limit."),
  };
  return keys;
}

const std::map<std::string_view, std::string_view>& unsupported_keys() {
  static const std::map<std::string_view, std::string_view> keys = {
      {"memory.gpu", "this version has no GPU support"},
  };
  return keys;
}

}  // namespace xgen::config
