#include "sources/hub.h"

#include <algorithm>
#include <utility>

#include "base/json.h"
#include "base/log.h"
#include "sources/sigv4.h"

namespace xgen::sources {
namespace {

constexpr int kMaxPages = 1000;

bool is_hex(std::string_view text, std::size_t size) {
  return text.size() == size &&
         std::all_of(text.begin(), text.end(), [](char c) { return (c >= '0' && c <= '9') || (c >= 'a' && c <= 'f'); });
}

std::string from_hex(std::string_view hex) {
  std::string out;
  const auto value = [](char c) { return c <= '9' ? c - '0' : c - 'a' + 10; };
  for (std::size_t i = 0; i + 1 < hex.size(); i += 2) out += static_cast<char>(value(hex[i]) * 16 + value(hex[i + 1]));
  return out;
}

// "<https://…?cursor=x>; rel="next", <…>; rel="first"" -> the address of rel="next"; empty: there is none.
std::string next_page(std::string_view link) {
  while (!link.empty()) {
    const std::size_t open = link.find('<');
    const std::size_t close = link.find('>', open == std::string_view::npos ? 0 : open);
    if (open == std::string_view::npos || close == std::string_view::npos) return {};
    const std::size_t end = std::min(link.find('<', close), link.size());
    const std::string_view parameters = link.substr(close, end - close);
    if (parameters.find("rel=\"next\"") != std::string_view::npos ||
        parameters.find("rel=next") != std::string_view::npos)
      return std::string(link.substr(open + 1, close - open - 1));
    link.remove_prefix(end);
  }
  return {};
}

std::string text_of(const boost::json::object& object, std::string_view key) {
  const auto* value = object.if_contains(key);
  return value != nullptr && value->is_string() ? std::string(value->as_string()) : std::string();
}

std::string source_text(const HubSource& source) {
  return "hf://" + source.repo + (source.revision == "main" ? "" : "@" + source.revision);
}

// One entry of the listing; empty path: not a file that can be used.
RemoteFile listed(const boost::json::value& entry) {
  RemoteFile file;
  if (!entry.is_object()) return file;
  const auto& fields = entry.as_object();
  if (text_of(fields, "type") != "file") return file;
  const auto* lfs = fields.if_contains("lfs");
  const auto* size = fields.if_contains("size");
  Expectation expected;
  if (lfs != nullptr && lfs->is_object()) {
    file.id = text_of(lfs->as_object(), "oid");
    if (file.id.starts_with("sha256:")) file.id.erase(0, 7);
    if (const auto* own = lfs->as_object().if_contains("size")) size = own;
    expected.kind = DigestKind::sha256;
    expected.where = "listing on the Hub (LFS)";
    if (!is_hex(file.id, 64)) return file;
  } else {
    file.id = text_of(fields, "oid");
    expected.kind = DigestKind::sha1;
    expected.git_blob = true;
    expected.where = "listing on the Hub (git)";
    if (!is_hex(file.id, 40)) return file;
  }
  if (size == nullptr || !size->is_int64() || size->as_int64() < 0) return file;
  file.size = static_cast<std::uint64_t>(size->as_int64());
  expected.raw = from_hex(file.id);
  file.expectations.push_back(std::move(expected));
  file.path = text_of(fields, "path");
  return file;
}

}  // namespace

bool is_commit(std::string_view revision) { return is_hex(revision, 40); }

std::string hub_folder_name(const std::string& repo) {
  std::string out = "models--" + repo;
  out.replace(out.find('/'), 1, "--");
  return out;
}

Result<http::ClientRequest> Hub::request(const std::string& target) const {
  auto url = http::parse_url(target.starts_with("/") ? settings_.endpoint + target : target);
  if (!url) return std::move(url).error();
  http::ClientRequest request;
  const auto home = http::parse_url(settings_.endpoint);
  request.url = *std::move(url);
  if (!settings_.token.empty() && home && home->origin() == request.url.origin())
    request.headers.emplace_back("Authorization", "Bearer " + settings_.token);
  return request;
}

Error Hub::explain(const HubSource& source, const std::string& file, const Answer& answer) const {
  const std::string code(answer.header("x-error-code"));
  const std::string said(answer.header("x-error-message"));
  const std::string where = source_text(source) + (file.empty() ? "" : "/" + file) + ": ";
  const std::string status = "the Hub (" + settings_.endpoint + ") answered " + std::to_string(answer.status);
  const std::string page = settings_.endpoint + "/" + source.repo;
  const auto error = [&](ErrorCode kind, const std::string& text) {
    return make_error(kind, where + text + (said.empty() ? "" : " (" + said.substr(0, 200) + ")"));
  };
  if (code == "GatedRepo") {
    return error(settings_.token.empty() ? ErrorCode::unauthenticated : ErrorCode::permission_denied,
                 settings_.token.empty()
                     ? "the repository is gated: a token is needed. Ask for access at " + page + " and set HF_TOKEN"
                     : "the repository is gated, and the token of " + settings_.token_from +
                           " has no access yet. Ask for it at " + page);
  }
  if (code == "RevisionNotFound")
    return error(ErrorCode::not_found, "the repository has no revision '" + source.revision + "'");
  if (code == "EntryNotFound") return error(ErrorCode::not_found, "the repository has no such file");
  if (answer.status == 401 || (code == "RepoNotFound" && settings_.token.empty())) {
    return error(answer.status == 401 ? ErrorCode::unauthenticated : ErrorCode::not_found,
                 settings_.token.empty() ? status + ": there is no repository '" + source.repo +
                                               "', or it is private and a token is needed: set HF_TOKEN"
                                         : status + ": the token of " + settings_.token_from + " is not accepted");
  }
  if (code == "RepoNotFound") {
    return error(ErrorCode::not_found, "there is no repository '" + source.repo + "', or the token of " +
                                           settings_.token_from + " may not see it");
  }
  if (answer.status == 403) {
    return error(ErrorCode::permission_denied,
                 status + ": access is refused" +
                     (settings_.token.empty() ? "; a token may be needed: set HF_TOKEN"
                                              : " to the token of " + settings_.token_from));
  }
  if (answer.status == 404) {
    return error(ErrorCode::not_found, file.empty() ? status + ": there is no repository '" + source.repo +
                                                          "', or it has no revision '" + source.revision + "'"
                                                    : status + ": the repository has no such file");
  }
  if (answer.status == 429) {
    const auto wait = retry_after(answer.headers, std::time(nullptr));
    Error limited = error(ErrorCode::overloaded,
                          status + ": too many requests" +
                              (wait ? "; it asks to wait " + std::to_string(wait->count()) + " s" : std::string()));
    if (wait) limited.retry_after_s = static_cast<int>(std::min<long long>(wait->count(), 86'400));
    return limited;
  }
  return error(ErrorCode::unavailable, status);
}

Result<std::string> Hub::commit(const HubSource& source, const std::stop_token& stop) const {
  if (is_commit(source.revision)) return source.revision;
  const std::string target = "/api/models/" + source.repo + "/revision/" + percent_encoded(source.revision, false);
  const auto answer = call(
      client_, [&] { return request(target); }, kMaxApiBody, patience_, stop);
  if (!answer) return make_error(answer.error().code, source_text(source) + ": " + answer.error().message);
  if (answer->status != 200) return explain(source, "", *answer);
  const auto json = parse_json(answer->body);
  const std::string commit = json && json->is_object() ? text_of(json->as_object(), "sha") : std::string();
  if (!is_commit(commit)) {
    return make_error(ErrorCode::unavailable, source_text(source) + ": " + settings_.endpoint +
                                                  " does not answer like a Hub: its answer names no commit");
  }
  return commit;
}

Result<std::vector<RemoteFile>> Hub::list(const HubSource& source, const std::string& commit,
                                          const std::stop_token& stop) const {
  std::vector<RemoteFile> files;
  std::string target = "/api/models/" + source.repo + "/tree/" + commit + "?recursive=true&expand=false";
  for (int page = 0; !target.empty(); ++page) {
    const auto too_much = [&] {
      return make_error(ErrorCode::too_large, source_text(source) + ": the repository has more than " +
                                                  std::to_string(kMaxListedFiles) + " files");
    };
    if (page >= kMaxPages) return too_much();
    const auto answer = call(
        client_, [&] { return request(target); }, kMaxApiBody, patience_, stop);
    if (!answer) return make_error(answer.error().code, source_text(source) + ": " + answer.error().message);
    if (answer->status != 200) return explain(source, "", *answer);
    const auto json = parse_json(answer->body);
    if (!json || !json->is_array()) {
      return make_error(ErrorCode::unavailable, source_text(source) + ": " + settings_.endpoint +
                                                    " does not answer like a Hub: its listing is no JSON list");
    }
    for (const auto& entry : json->as_array()) {
      RemoteFile file = listed(entry);
      if (file.path.empty()) continue;
      if (!is_safe_relative_path(file.path)) {
        log::warn("sources", "a file's name is not accepted", {{"source", source_text(source)}, {"name", file.path}});
        continue;
      }
      files.push_back(std::move(file));
      if (files.size() > kMaxListedFiles) return too_much();
    }
    target = next_page(answer->header("link"));
  }
  return files;
}

Remote Hub::remote(const HubSource& source, const std::string& commit, const RemoteFile& file) const {
  Remote remote;
  remote.name = source_text(source) + "/" + file.path;
  const std::string target =
      "/" + source.repo + "/resolve/" + percent_encoded(commit, false) + "/" + percent_encoded(file.path, true);
  remote.request = [this, target] { return request(target); };
  remote.explain = [this, source, path = file.path](const Answer& answer) { return explain(source, path, answer); };
  remote.look = [id = file.id, name = remote.name](const http::ResponseHead& head) -> Status {
    std::string_view linked = head.header("x-linked-etag");
    if (linked.starts_with("W/")) linked.remove_prefix(2);
    if (linked.size() >= 2 && linked.front() == '"' && linked.back() == '"')
      linked = linked.substr(1, linked.size() - 2);
    if (linked.empty() || linked == id) return {};
    return make_error(ErrorCode::unavailable, name + ": the Hub's listing says that its content is " + id +
                                                  ", but its x-linked-etag says " + std::string(linked.substr(0, 100)));
  };
  return remote;
}

}  // namespace xgen::sources
