// Rotary position embedding: frequencies with every kind of context extension, and cos/sin tables.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

namespace xgen::model {

// The extension methods as transformers' modeling_rope_utils.py defines them (the names are its rope_type values).
// "dynamic" is not among them: its frequencies change with the sequence's length, so that cached keys would have to
// be recomputed.
struct RopeScaling {
  enum class Kind : std::uint8_t { none, linear, llama3, yarn, longrope };
  Kind kind = Kind::none;
  double factor = 1;
  double original_context = 0;  // positions before the extension
  double low_freq_factor = 1;   // llama3
  double high_freq_factor = 4;
  double beta_fast = 32;  // yarn
  double beta_slow = 1;
  bool truncate = true;
  double attention_factor = 1;  // yarn, longrope: multiplies cos and sin
  // Divides each frequency (longrope's chosen list; GGUF's rope_freqs tensor). Empty: none. [rotary_dim / 2]
  std::vector<double> divisors;
};

struct RopeSpec {
  int rotary_dim = 0;               // even
  std::vector<double> frequencies;  // radians per position, [rotary_dim / 2]
  double attention_factor = 1;
};

// Precondition: rotary_dim even and >= 2, theta > 1, scaling checked (positive factors, sizes).
RopeSpec make_rope(int rotary_dim, double theta, const RopeScaling& scaling);

// cos and sin of positions [n], each [n][rotary_dim / 2], in double precision before rounding.
void fill_rope_tables(const RopeSpec& rope, std::span<const std::int32_t> positions, float* cos, float* sin);

// YaRN's magnitude correction for a context extended by `scale` (arXiv:2309.00071, section 3.4).
double yarn_magnitude(double scale, double mscale = 1);

}  // namespace xgen::model
