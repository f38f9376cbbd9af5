# `terraform test`, without an account: the provider is a mock, what is checked is what we would ask of it.
mock_provider "aws" {
  mock_resource "aws_s3_bucket" {
    defaults = { arn = "arn:aws:s3:::glefld-test" }
  }
  mock_resource "aws_iam_role" {
    defaults = { arn = "arn:aws:iam::123456789012:role/any" }
  }
}

variables {
  bucket            = "glefld-test"
  oidc_provider_arn = "arn:aws:iam::123456789012:oidc-provider/oidc.example.com/id/CLUSTER"
}

run "bucket_is_private_encrypted_versioned" {
  assert {
    condition = alltrue([
      aws_s3_bucket_public_access_block.root.block_public_acls,
      aws_s3_bucket_public_access_block.root.block_public_policy,
      aws_s3_bucket_public_access_block.root.ignore_public_acls,
      aws_s3_bucket_public_access_block.root.restrict_public_buckets,
    ])
    error_message = "something public is possible"
  }
  assert {
    condition     = aws_s3_bucket_versioning.root.versioning_configuration[0].status == "Enabled"
    error_message = "deleted and overwritten objects would be lost"
  }
  assert {
    condition     = one(one(aws_s3_bucket_server_side_encryption_configuration.root.rule).apply_server_side_encryption_by_default).sse_algorithm == "AES256"
    error_message = "not encrypted"
  }
  assert {
    condition = (
      jsondecode(aws_s3_bucket_policy.root.policy).Statement[0].Effect == "Deny" &&
      jsondecode(aws_s3_bucket_policy.root.policy).Statement[0].Condition.Bool["aws:SecureTransport"] == "false"
    )
    error_message = "plain HTTP is let in"
  }
}

run "leftovers_expire" {
  assert {
    condition = anytrue([
      for rule in aws_s3_bucket_lifecycle_configuration.root.rule :
      try(rule.abort_incomplete_multipart_upload[0].days_after_initiation, 0) == 2 && rule.status == "Enabled"
    ])
    error_message = "the parts of unfinished uploads stay for ever"
  }
  assert {
    condition = toset([
      for rule in aws_s3_bucket_lifecycle_configuration.root.rule : rule.filter[0].prefix if startswith(rule.id, "rejects-")
    ]) == toset([for name in var.datasets : "data/${name}/_rejects/"])
    error_message = "rejected rows stay for ever, or something else goes with them"
  }
}

run "each_role_has_its_prefixes_only" {
  assert {
    condition = {
      for name, policy in aws_iam_role_policy.work : name => flatten([
        for statement in jsondecode(policy.policy).Statement :
        statement.Resource if contains(statement.Action, "s3:PutObject")
      ])
      } == {
      ingest = ["arn:aws:s3:::glefld-test/data/*"]
      train  = ["arn:aws:s3:::glefld-test/runs/*", "arn:aws:s3:::glefld-test/models/*"]
      infer  = ["arn:aws:s3:::glefld-test/predictions/*"]
      mlflow = ["arn:aws:s3:::glefld-test/mlflow/*"]
      ray = [
        "arn:aws:s3:::glefld-test/data/*", "arn:aws:s3:::glefld-test/runs/*", "arn:aws:s3:::glefld-test/predictions/*",
        "arn:aws:s3:::glefld-test/models/*",
      ]
    }
    error_message = "a role may write where it should not"
  }
  assert {
    condition = toset(flatten([
      for statement in jsondecode(aws_iam_role_policy.work["train"].policy).Statement :
      statement.Resource if contains(statement.Action, "s3:GetObject")
    ])) == toset([for prefix in ["data", "weights", "runs", "models"] : "arn:aws:s3:::glefld-test/${prefix}/*"])
    error_message = "training may read where it should not"
  }
  assert {
    condition = toset(flatten([
      for statement in jsondecode(aws_iam_role_policy.work["infer"].policy).Statement :
      statement.Resource if contains(statement.Action, "s3:GetObject")
    ])) == toset([for prefix in ["runs", "photos", "data", "models", "predictions"] : "arn:aws:s3:::glefld-test/${prefix}/*"])
    error_message = "inference cannot read the models, or reads where it should not"
  }
  assert {
    condition = toset([
      for name, policy in aws_iam_role_policy.work : name if anytrue([
        for statement in jsondecode(policy.policy).Statement :
        contains(statement.Resource, "arn:aws:s3:::glefld-test/models/*") && contains(statement.Action, "s3:PutObject")
      ])
    ]) == toset(["train", "ray"])
    error_message = "models can be exchanged by those who only use them"
  }
  assert {
    condition = alltrue(flatten([
      for policy in aws_iam_role_policy.work : [
        for statement in jsondecode(policy.policy).Statement : [
          for action in statement.Action : !strcontains(action, "*") && !strcontains(action, "Version")
        ]
      ]
    ]))
    error_message = "a wildcard of actions, or versions that can be deleted"
  }
}

run "only_its_service_account_takes_a_role" {
  variables {
    namespace = "elsewhere"
  }
  assert {
    condition = alltrue([
      for name, role in aws_iam_role.work :
      jsondecode(role.assume_role_policy).Statement[0].Condition.StringEquals == {
        "oidc.example.com/id/CLUSTER:sub" = "system:serviceaccount:elsewhere:${name}"
        "oidc.example.com/id/CLUSTER:aud" = "sts.amazonaws.com"
      }
    ])
    error_message = "someone else may take a role"
  }
}

run "wrong_oidc_provider_is_refused" {
  command = plan
  variables {
    oidc_provider_arn = "oidc.example.com/id/CLUSTER"
  }
  expect_failures = [var.oidc_provider_arn]
}

run "without_kubernetes_no_role_for_pods" {
  variables {
    oidc_provider_arn = null
  }
  assert {
    condition     = length(aws_iam_role.work) == 0 && length(aws_iam_role_policy.work) == 0
    error_message = "roles that nobody can take"
  }
}

run "kubernetes_alone_makes_no_machines_rights" {
  assert {
    condition     = length(aws_iam_role.ray_up) == 0 && length(aws_security_group.ray_up) == 0
    error_message = "ray up's part is made though nobody asked for it"
  }
}

run "ray_up_is_closed" {
  variables {
    ray_up = { vpc_id = "vpc-1", ssh_cidr = "10.1.0.0/16", region = "eu-central-1", account = "123456789012" }
  }
  assert {
    condition = alltrue([
      for rule in aws_security_group.ray_up[0].ingress :
      coalesce(rule.self, false) || (rule.cidr_blocks == tolist(["10.1.0.0/16"]) && rule.to_port == 22)
    ])
    error_message = "the machines can be reached from elsewhere"
  }
  assert {
    condition     = keys(aws_iam_role_policy.ray_up_machines) == ["head"]
    error_message = "a worker may start machines"
  }
}

run "ray_up_needs_no_kubernetes" {
  variables {
    oidc_provider_arn = null
    ray_up            = { vpc_id = "vpc-1", ssh_cidr = "10.1.0.0/16", region = "eu-central-1", account = "123456789012" }
  }
  assert {
    condition     = keys(aws_iam_role_policy.ray_up_bucket) == ["head", "worker"]
    error_message = "machines that may not use the bucket"
  }
}

run "ssh_from_everywhere_is_refused" {
  command = plan
  variables {
    ray_up = { vpc_id = "vpc-1", ssh_cidr = "0.0.0.0/0", region = "eu-central-1", account = "123456789012" }
  }
  expect_failures = [var.ray_up]
}
