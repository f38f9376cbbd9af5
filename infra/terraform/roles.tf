# A role for each kind of work. A Kubernetes service account of the same name may take it, and nobody else.
locals {
  work = {
    ingest = { read = ["raw"], write = ["data"] }
    train  = { read = ["data", "weights"], write = ["runs", "models"] }
    # Not models/: who may run a model must not be able to exchange it for the next one who does.
    infer  = { read = ["runs", "photos", "data", "models"], write = ["predictions"] }
    mlflow = { read = [], write = ["mlflow"] }
    # The shared cluster, to which people submit any of the jobs: whoever may submit to it may do all three, and so train.
    ray = { read = ["raw", "photos", "weights"], write = ["data", "runs", "predictions", "models"] }
  }
  policies = { for name, prefixes in local.work : name => jsonencode({
    Version = "2012-10-17"
    Statement = [
      {
        # Of the whole bucket: asked of a missing key, S3 answers 403 and not 404 to whoever may not list, and jobs ask.
        Sid      = "Names"
        Effect   = "Allow"
        Action   = ["s3:ListBucket", "s3:GetBucketLocation"]
        Resource = [aws_s3_bucket.root.arn]
      },
      {
        Sid      = "Read"
        Effect   = "Allow"
        Action   = ["s3:GetObject"]
        Resource = [for prefix in concat(prefixes.read, prefixes.write) : "${aws_s3_bucket.root.arn}/${prefix}/*"]
      },
      {
        # Deleted: staging folders, old checkpoints. Their versions cannot be, so nothing is lost at once.
        Sid      = "Write"
        Effect   = "Allow"
        Action   = ["s3:PutObject", "s3:DeleteObject", "s3:AbortMultipartUpload", "s3:ListMultipartUploadParts"]
        Resource = [for prefix in prefixes.write : "${aws_s3_bucket.root.arn}/${prefix}/*"]
      },
    ]
  }) }

  pods   = var.oidc_provider_arn == null ? {} : local.work
  issuer = var.oidc_provider_arn == null ? "" : regex(":oidc-provider/(.*)$", var.oidc_provider_arn)[0]
}

resource "aws_iam_role" "work" {
  for_each = local.pods
  name     = "${var.name}-${each.key}"

  assume_role_policy = jsonencode({
    Version = "2012-10-17"
    Statement = [{
      Effect    = "Allow"
      Action    = "sts:AssumeRoleWithWebIdentity"
      Principal = { Federated = var.oidc_provider_arn }
      Condition = {
        StringEquals = {
          "${local.issuer}:sub" = "system:serviceaccount:${var.namespace}:${each.key}"
          "${local.issuer}:aud" = "sts.amazonaws.com"
        }
      }
    }]
  })
}

resource "aws_iam_role_policy" "work" {
  for_each = local.pods
  name     = "bucket"
  role     = aws_iam_role.work[each.key].id
  policy   = local.policies[each.key]
}
