// RequestMaker: the bodies of a load's requests, each made of the seed and its number alone, so that a run can be
// repeated whatever the times were.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "base/result.h"
#include "client/api.h"
#include "client/lengths.h"
#include "client/trace.h"

namespace xgen::client {

struct RequestOptions {
  std::string model;
  bool chat = true;
  bool ignore_eos = false;
  bool ask_usage = true;
  ExtraFields extra;
  Lengths input;
  Lengths output;
  int prefixes = 0;
  int prefix_tokens = 0;  // of each, in front of the input
  std::uint64_t seed = 1;
  int max_len = 0;  // of a prompt and its answer together; 0: none
};

// How many tokens the server makes of so many words; words have about one token each.
struct WordCost {
  double tokens = 1;    // of one more word
  double overhead = 0;  // of a prompt without words: the chat template's
  bool measured = false;
};

class RequestMaker {
 public:
  // `trace` outlives this; null where no length is that of a trace.
  RequestMaker(RequestOptions options, const std::vector<TraceRow>* trace);
  void set_cost(WordCost cost) { cost_ = cost; }

  struct Made {
    std::string body;
    int input = 0;   // tokens that are meant, the prefix included
    int output = 0;  // tokens that are asked for
    bool shortened = false;
  };
  Made make(std::uint64_t number) const;
  // A short request, whose answer is no stream, with every so many-th of all words there are.
  std::string make_probe(std::size_t first, std::size_t step) const;

  std::string_view path() const { return options_.chat ? "/chat/completions" : "/completions"; }
  const RequestOptions& options() const { return options_; }

 private:
  std::string body(const std::string& prompt, int output, bool stream) const;

  const RequestOptions options_;
  const std::vector<TraceRow>* trace_;
  WordCost cost_;
};

// Asks the server three times, with different prompts, and takes what its `usage` says. Not measured where it says
// nothing, or refuses for reasons that a load may meet as well (429, 503). Errors: other refusals, and no connection.
Result<WordCost> measure_cost(http::Client& client, const Api& api, const RequestMaker& maker);

}  // namespace xgen::client
