// Bytes: a read-only byte range that keeps alive whatever owns it (a mapped file, a buffer, the program itself).
#pragma once

#include <cstddef>
#include <memory>
#include <span>
#include <string>
#include <string_view>

#include "base/file_damage.h"
#include "base/result.h"

namespace xgen {

class Bytes {
 public:
  Bytes() = default;
  Bytes(std::span<const std::byte> data, std::shared_ptr<const void> owner) : data_(data), owner_(std::move(owner)) {}

  std::span<const std::byte> span() const { return data_; }
  std::string_view text() const { return {reinterpret_cast<const char*>(data_.data()), data_.size()}; }
  const std::byte* data() const { return data_.data(); }
  std::size_t size() const { return data_.size(); }
  const std::shared_ptr<const void>& owner() const { return owner_; }

 private:
  std::span<const std::byte> data_;
  std::shared_ptr<const void> owner_;  // null for static storage
};

// Maps a whole regular file read-only. Errors: not_found / invalid_argument naming the path and the OS reason.
// An empty file gives empty Bytes. `damage` is told when it cannot be read later; without it that ends the process.
// Error unavailable beyond kMaxGuardedFiles.
Result<Bytes> map_file(const std::string& path, std::shared_ptr<FileDamage> damage = {});

// Takes whole pages of `range` out of this process's memory where they are those of a file mapped with a `damage`. They
// stay in the system's cache, and come back when they are read. Other memory is left alone.
void let_pages_go(std::span<const std::byte> range);

}  // namespace xgen
