// tiktoken's rank files: one "base64-of-the-bytes rank" per line, as OpenAI, Meta (Llama 3 and 4) and Qwen ship them.
// The file names neither word pattern nor special tokens: both follow from its name or its number of ranks.
#include <charconv>

#include "text/tokenizer_parts.h"
#include "text/word_patterns.h"

namespace xgen::text {
namespace {

Error bad(std::size_t line, const std::string& what) {
  return make_error(ErrorCode::invalid_argument, "line " + std::to_string(line) + ": " + what);
}

int base64_value(char c) {
  if (c >= 'A' && c <= 'Z') return c - 'A';
  if (c >= 'a' && c <= 'z') return c - 'a' + 26;
  if (c >= '0' && c <= '9') return c - '0' + 52;
  if (c == '+') return 62;
  if (c == '/') return 63;
  return -1;
}

bool decode_base64(std::string_view text, std::string& out) {
  out.clear();
  std::uint32_t bits = 0;
  int have = 0;
  while (text.ends_with('=')) text.remove_suffix(1);
  for (const char c : text) {
    const int value = base64_value(c);
    if (value < 0) return false;
    bits = (bits << 6) | static_cast<std::uint32_t>(value);
    have += 6;
    if (have >= 8) {
      have -= 8;
      out += static_cast<char>((bits >> have) & 0xFF);
    }
  }
  return !out.empty();
}

struct Special {
  std::string text;
  std::int32_t offset;  // from the number of ranks, or from 0 where absolute
};

struct Encoding {
  std::string_view name;  // begins the file's name
  std::size_t ranks;
  std::string_view pattern;
  std::vector<Special> (*specials)();
  std::string_view bos, eos, pad;
  bool nfc = false;
};

std::string numbered(std::string_view stem, int i) { return "<|" + std::string(stem) + std::to_string(i) + "|>"; }

void append(std::vector<Special>& all, std::string text) {
  all.push_back({std::move(text), static_cast<std::int32_t>(all.size())});
}

// Meta's llama-models, models/llama3/tokenizer.py.
std::vector<Special> llama3_specials() {
  std::vector<Special> all;
  for (const char* text :
       {"<|begin_of_text|>", "<|end_of_text|>", "<|reserved_special_token_0|>", "<|reserved_special_token_1|>",
        "<|finetune_right_pad_id|>", "<|step_id|>", "<|start_header_id|>", "<|end_header_id|>", "<|eom_id|>",
        "<|eot_id|>", "<|python_tag|>", "<|image|>"}) {
    append(all, text);
  }
  for (int i = 2; all.size() < 256; ++i) append(all, numbered("reserved_special_token_", i));
  return all;
}

// Meta's llama-models, models/llama4/tokenizer.py.
std::vector<Special> llama4_specials() {
  std::vector<Special> all;
  for (const char* text : {"<|begin_of_text|>", "<|end_of_text|>", "<|fim_prefix|>", "<|fim_middle|>", "<|fim_suffix|>",
                           "<|header_start|>", "<|header_end|>", "<|eom|>", "<|eot|>", "<|step|>"}) {
    append(all, text);
  }
  for (int i = 0; i < 6; ++i) append(all, numbered("text_post_train_reserved_special_token_", i));
  for (const char* text : {"<|python_start|>", "<|python_end|>", "<|finetune_right_pad|>"}) append(all, text);
  for (int i = 8; i < 69; ++i) append(all, numbered("text_post_train_reserved_special_token_", i));
  append(all, "<|image_start|>");
  append(all, "<|image_end|>");
  for (int i = 0; i < 2; ++i) append(all, numbered("vision_reserved_special_token_", i));
  append(all, "<|tile_x_separator|>");
  append(all, "<|tile_y_separator|>");
  for (int i = 2; i < 6; ++i) append(all, numbered("vision_reserved_special_token_", i));
  append(all, "<|image|>");
  append(all, numbered("vision_reserved_special_token_", 6));
  append(all, "<|patch|>");
  for (int i = 7; i < 1048; ++i) append(all, numbered("vision_reserved_special_token_", i));
  for (int i = 0; i < 8; ++i) append(all, numbered("reasoning_reserved_special_token_", i));
  append(all, "<|reasoning_thinking_start|>");
  append(all, "<|reasoning_thinking_end|>");
  for (int i = 0; all.size() < 2048; ++i) append(all, numbered("reserved_special_token_", i));
  return all;
}

std::vector<Special> qwen_specials() {
  std::vector<Special> all;
  for (const char* text : {"<|endoftext|>", "<|im_start|>", "<|im_end|>"}) append(all, text);
  for (int i = 0; i < 205; ++i) append(all, numbered("extra_", i));
  return all;
}

const Encoding* find_encoding(std::string_view file_name, std::size_t ranks) {
  static const std::vector<Encoding> table = {
      {"llama3", 128000, kLlama3Pattern, llama3_specials, "<|begin_of_text|>", "<|end_of_text|>",
       "<|finetune_right_pad_id|>"},
      {"llama4", 200000, kO200kPattern, llama4_specials, "<|begin_of_text|>", "<|end_of_text|>",
       "<|finetune_right_pad|>"},
      {"cl100k_base", 100256, kLlama3Pattern,
       [] {
         return std::vector<Special>{{"<|endoftext|>", 1},
                                     {"<|fim_prefix|>", 2},
                                     {"<|fim_middle|>", 3},
                                     {"<|fim_suffix|>", 4},
                                     {"<|endofprompt|>", 20}};
       },
       "", "<|endoftext|>", ""},
      {"o200k_base", 199998, kO200kPattern,
       [] {
         return std::vector<Special>{{"<|endoftext|>", 1}, {"<|endofprompt|>", 20}};
       },
       "", "<|endoftext|>", ""},
      {"p50k_base", 50280, kGpt2Pattern,
       [] {
         return std::vector<Special>{{"<|endoftext|>", 50256 - 50280}};
       },
       "", "<|endoftext|>", ""},
      {"r50k_base", 50256, kGpt2Pattern,
       [] {
         return std::vector<Special>{{"<|endoftext|>", 0}};
       },
       "", "<|endoftext|>", ""},
      {"qwen", 151643, kQwen2Pattern, qwen_specials, "", "<|endoftext|>", "", true},
  };
  for (const Encoding& row : table) {
    if (file_name.starts_with(row.name)) return &row;
  }
  for (const Encoding& row : table) {
    if (row.ranks == ranks) return &row;
  }
  return nullptr;
}

}  // namespace

bool looks_like_tiktoken(std::string_view data) {
  const std::string_view line = data.substr(0, std::min(data.find('\n'), data.size()));
  const std::size_t blank = line.find(' ');
  if (blank == 0 || blank == std::string_view::npos || line.size() > 4096) return false;
  for (const char c : line.substr(0, blank)) {
    if (base64_value(c) < 0 && c != '=') return false;
  }
  return blank + 1 < line.size() && line[blank + 1] >= '0' && line[blank + 1] <= '9';
}

Status load_tiktoken(std::string_view text, std::string_view file_name, TokenizerParts& parts) {
  parts.vocab.reserve(text.size() / 16, text.size() / 2);
  std::vector<std::uint32_t> ranks;
  std::string bytes;
  std::size_t number = 0, count = 0;
  while (!text.empty()) {
    ++number;
    const std::size_t end = std::min(text.find('\n'), text.size());
    std::string_view line = text.substr(0, end);
    text.remove_prefix(std::min(end + 1, text.size()));
    if (line.ends_with('\r')) line.remove_suffix(1);
    if (line.empty()) continue;
    const std::size_t blank = line.find(' ');
    if (blank == std::string_view::npos) return bad(number, "must hold base64, a blank and a rank");
    if (!decode_base64(line.substr(0, blank), bytes)) return bad(number, "is not base64");
    std::int64_t rank = -1;
    const char* last = line.data() + line.size();
    const auto [stop, ec] = std::from_chars(line.data() + blank + 1, last, rank);
    if (ec != std::errc() || stop != last || rank < 0) return bad(number, "the rank is not a number");
    if (!parts.vocab.add(bytes, rank)) return bad(number, "rank " + std::to_string(rank) + " is out of range");
    ++count;
  }
  parts.vocab.index();
  ranks.assign(static_cast<std::size_t>(parts.vocab.size()), BpeModel::kNever);
  for (std::int32_t id = 0; id < parts.vocab.size(); ++id) {
    if (parts.vocab.has(id)) ranks[static_cast<std::size_t>(id)] = static_cast<std::uint32_t>(id);
  }
  for (unsigned b = 0; b < 256; ++b) {
    const char c = static_cast<char>(b);
    if (parts.vocab.find({&c, 1}) < 0) {
      return make_error(ErrorCode::invalid_argument, "no rank for the byte " + std::to_string(b));
    }
  }
  const Encoding* encoding = find_encoding(file_name, count);
  if (encoding == nullptr) {
    return make_error(ErrorCode::unsupported,
                      "a rank file of " + std::to_string(count) +
                          " entries is not known: its word pattern follows from the file's name (cl100k_base, "
                          "o200k_base, p50k_base, r50k_base, qwen) or from the count (Llama 3: 128000, Llama 4: "
                          "200000)");
  }
  for (Special& special : encoding->specials()) {
    AddedToken token;
    token.content = std::move(special.text);
    token.id = static_cast<std::int32_t>(encoding->ranks) + special.offset;
    if (parts.vocab.has(token.id)) {
      return make_error(ErrorCode::invalid_argument,
                        "rank " + std::to_string(token.id) + " belongs to the special token " + token.content);
    }
    token.normalized = false;
    token.special = true;
    if (Status s = parts.add_token(std::move(token)); !s) return s;
  }
  const auto name = [&](const char* role, std::string_view content) {
    if (!content.empty()) parts.special_tokens.emplace_back(role, content);
  };
  name("bos_token", encoding->bos);
  name("eos_token", encoding->eos);
  name("pad_token", encoding->pad);
  if (!encoding->bos.empty()) parts.add_bos = true;
  if (encoding->nfc) parts.normalizer.steps.emplace_back();
  if (Status s = add_split_steps({encoding->pattern}, parts.pre_tokenizer); !s) return s;

  BpeModel::Options options;
  options.raw_bytes = true;
  options.ignore_merges = true;  // tiktoken takes a word that has a rank as it is
  auto model = std::make_unique<BpeModel>(parts.vocab, std::move(options));
  model->set_piece_ranks(std::move(ranks));
  parts.model = std::move(model);
  return {};
}

}  // namespace xgen::text
