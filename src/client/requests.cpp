#include "client/requests.h"

#include <algorithm>
#include <cmath>

#include "base/json.h"
#include "base/json_text.h"

namespace xgen::client {
namespace {

// Common enough that every large vocabulary has each of them, with the blank before it, as one token.
constexpr std::string_view kWords[] = {
    "the",   "of",     "and",   "to",    "in",    "is",    "that", "for",   "it",    "as",    "was",   "with",  "be",
    "by",    "on",     "not",   "he",    "his",   "but",   "at",   "are",   "this",  "have",  "from",  "or",    "had",
    "an",    "they",   "which", "one",   "you",   "were",  "all",  "her",   "she",   "there", "would", "their", "we",
    "him",   "been",   "has",   "when",  "who",   "will",  "no",   "more",  "if",    "out",   "so",    "up",    "what",
    "its",   "about",  "than",  "into",  "them",  "can",   "only", "other", "time",  "new",   "some",  "could", "these",
    "two",   "may",    "first", "then",  "do",    "any",   "like", "my",    "now",   "over",  "such",  "our",   "man",
    "me",    "even",   "most",  "made",  "after", "also",  "well", "did",   "many",  "off",   "under", "go",    "long",
    "work",  "life",   "make",  "where", "much",  "way",   "down", "back",  "small", "house", "world", "year",  "point",
    "water", "people", "great", "high",  "last",  "place", "line", "right", "good",  "still", "part",  "old",   "see",
    "take",  "come",   "day",   "name",  "give",  "same",  "own",  "set",   "three", "end",   "hand",  "home",  "read"};

void add_words(std::string& out, int count, Random random) {
  for (int i = 0; i < count; ++i) {
    if (!out.empty()) out += ' ';
    out += kWords[random.below(std::size(kWords))];
  }
}

// What streams of random numbers are for.
constexpr std::uint64_t kLengthStream = 1ULL << 62;
constexpr std::uint64_t kPrefixStream = 2ULL << 62;
constexpr std::uint64_t kTextStream = 3ULL << 62;

}  // namespace

RequestMaker::RequestMaker(RequestOptions options, const std::vector<TraceRow>* trace)
    : options_(std::move(options)), trace_(trace) {}

std::string RequestMaker::body(const std::string& prompt, int output, bool stream) const {
  std::string out = "{\"model\":";
  append_json_string(out, options_.model);
  out += options_.chat ? ",\"messages\":[{\"role\":\"user\",\"content\":" : ",\"prompt\":";
  append_json_string(out, prompt);
  if (options_.chat) out += "}]";
  const auto add = [&](const char* name, const std::string& value) {
    if (!options_.extra.has(name)) out.append(",\"").append(name).append("\":").append(value);
  };
  // Newer servers of OpenAI's know the second name alone, others the first.
  if (!options_.extra.has("max_completion_tokens")) add("max_tokens", std::to_string(output));
  if (stream) add("stream", "true");
  if (stream && options_.ask_usage) add("stream_options", "{\"include_usage\":true}");
  if (options_.ignore_eos) add("ignore_eos", "true");
  return out + options_.extra.text + "}";
}

RequestMaker::Made RequestMaker::make(std::uint64_t number) const {
  const TraceRow row = trace_ == nullptr ? TraceRow() : (*trace_)[number % trace_->size()];
  Random lengths(options_.seed, kLengthStream + number);
  Made made;
  int input = options_.input.draw(lengths, row.input);
  made.output = options_.output.draw(lengths, row.output);
  const int prefix = options_.prefixes > 0 ? options_.prefix_tokens : 0;
  if (options_.max_len > 0) {
    // Lengths in words are not exact.
    const int room = options_.max_len - options_.max_len / 16;
    if (prefix + input + made.output > room) {
      // The answer has at least half of it, and what a short prompt leaves.
      made.output = std::min(made.output, std::max({1, room / 2, room - prefix - input}));
      input = std::clamp(room - prefix - made.output, 1, input);
      made.shortened = true;
    }
  }
  made.input = prefix + input;
  const auto words = [&](double tokens) { return std::max(1, static_cast<int>(std::lround(tokens / cost_.tokens))); };
  std::string prompt;
  if (prefix > 0)
    add_words(prompt, words(prefix),
              Random(options_.seed, kPrefixStream + lengths.below(static_cast<std::uint64_t>(options_.prefixes))));
  add_words(prompt, words(input - cost_.overhead), Random(options_.seed, kTextStream + number));
  made.body = body(prompt, made.output, true);
  return made;
}

std::string RequestMaker::make_probe(std::size_t first, std::size_t step) const {
  std::string prompt;
  for (std::size_t i = first; i < std::size(kWords); i += step) {
    if (!prompt.empty()) prompt += ' ';
    prompt += kWords[i];
  }
  return body(prompt, 1, false);
}

Result<WordCost> measure_cost(http::Client& client, const Api& api, const RequestMaker& maker) {
  // All words, and the two halves of them: what the halves have too much together is what a prompt costs by itself.
  constexpr std::pair<std::size_t, std::size_t> kProbes[] = {{0, 1}, {0, 2}, {1, 2}};
  double tokens[3] = {};
  for (std::size_t i = 0; i < 3; ++i) {
    const auto answer =
        ask(client, api, api.request(maker.path(), maker.make_probe(kProbes[i].first, kProbes[i].second)));
    if (!answer) {
      const ErrorCode code = answer.error().code;
      if (code == ErrorCode::overloaded || (code == ErrorCode::unavailable && client.counts().opened > 0))
        return WordCost();
      return answer.error();
    }
    const auto value = parse_json(*answer);
    const boost::json::object* object = value ? value->if_object() : nullptr;
    const boost::json::value* usage = object == nullptr ? nullptr : object->if_contains("usage");
    const boost::json::value* count =
        usage == nullptr || !usage->is_object() ? nullptr : usage->get_object().if_contains("prompt_tokens");
    if (count == nullptr || !count->is_int64()) return WordCost();
    tokens[i] = static_cast<double>(count->get_int64());
  }
  WordCost cost;
  cost.overhead = tokens[1] + tokens[2] - tokens[0];
  cost.tokens = (tokens[0] - cost.overhead) / static_cast<double>(std::size(kWords));
  cost.measured = cost.tokens > 0.1 && cost.tokens < 100;
  return cost.measured ? cost : WordCost();
}

}  // namespace xgen::client
