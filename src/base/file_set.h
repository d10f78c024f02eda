// FileSet: the files of one model by name, wherever they are: a folder, one file, or inside the program.
#pragma once

#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "base/bytes.h"
#include "base/result.h"

namespace xgen {

class FileSet {
 public:
  virtual ~FileSet() = default;
  // Names relative to the set ("config.json"), sorted.
  virtual std::vector<std::string> list() const = 0;
  virtual bool has(std::string_view name) const = 0;
  // Maps the file; not_found names it. A name with a '/' or ".." is refused.
  virtual Result<Bytes> open(std::string_view name) const = 0;
  // What to call the set, or one file of it, in messages: a path, or "built-in:xgen-demo/config.json".
  virtual std::string describe(std::string_view name = {}) const = 0;

  // Of all files opened from this set; to be asked before what was read from them is believed.
  const std::shared_ptr<FileDamage>& damage() const { return damage_; }

 private:
  std::shared_ptr<FileDamage> damage_ = std::make_shared<FileDamage>();
};

// A folder (its regular files, not recursive), or a single file (a set of one, plus the other parts where the file is
// "NAME-00001-of-0000N.EXT"). Errors: not_found / invalid_argument naming the path.
Result<std::shared_ptr<const FileSet>> open_files(const std::string& path);

// Files that live in the program image (or any storage that outlives the set).
struct EmbeddedFile {
  std::string_view name;
  std::string_view data;
};
std::shared_ptr<const FileSet> embedded_files(std::string title, std::vector<EmbeddedFile> files);

}  // namespace xgen
