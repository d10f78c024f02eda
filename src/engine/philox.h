// Philox4x32-10: random numbers as a function of a key and a counter (Salmon et al., "Parallel Random Numbers: As Easy
// as 1, 2, 3", SC11). No state is shared, so a request's numbers do not depend on what else runs.
#pragma once

#include <array>
#include <cstdint>

namespace xgen::engine {

inline std::array<std::uint32_t, 4> philox4x32(std::array<std::uint32_t, 4> counter, std::array<std::uint32_t, 2> key) {
  for (int round = 0; round < 10; ++round) {
    const std::uint64_t a = std::uint64_t{0xD2511F53u} * counter[0];
    const std::uint64_t b = std::uint64_t{0xCD9E8D57u} * counter[2];
    counter = {static_cast<std::uint32_t>(b >> 32) ^ counter[1] ^ key[0], static_cast<std::uint32_t>(b),
               static_cast<std::uint32_t>(a >> 32) ^ counter[3] ^ key[1], static_cast<std::uint32_t>(a)};
    key[0] += 0x9E3779B9u;
    key[1] += 0xBB67AE85u;
  }
  return counter;
}

// Uniform in [0, 1), 53 bits: the number for one output position of one choice.
inline double uniform(std::uint64_t seed, std::uint32_t choice, std::uint32_t position) {
  const auto x =
      philox4x32({position, choice, 0, 0}, {static_cast<std::uint32_t>(seed), static_cast<std::uint32_t>(seed >> 32)});
  const std::uint64_t bits = (std::uint64_t{x[0]} << 32 | x[1]) >> 11;
  return static_cast<double>(bits) * 0x1p-53;
}

}  // namespace xgen::engine
